"""`status`, `inspect`, `config` and `doctor`: they look, and change nothing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import (
    DEFAULT_STORAGE,
    AsJson,
    Asked,
    Overrides,
    StorageRoot,
    Verbose,
    give,
    on_a_run,
    print_json,
    refuse_beside,
    resolve_config,
    start_quietly,
    take_one,
)
from flows.cli.terminal import PlainConsole

if TYPE_CHECKING:
    from miniplm.config.run import RunConfig
    from miniplm.records.run import RunRecord
    from miniplm.selection.diversity_sample import SelectionDiversity
    from miniplm.storage.root import Storage


@on_a_run
def status(asked: Asked) -> None:
    """How far a run has come: each stage and shard is done, missing or broken, judged by its files and digests."""
    from flows.cli.tables import print_status
    from miniplm.run.resolution import resolve
    from miniplm.run.status import check_run
    from miniplm.storage.root import Storage

    plan = resolve(asked.resolve_config(), checks=False)
    result = check_run(Storage(plan.storage), plan)
    give(asked.as_json, result, print_status)


@on_a_run
def inspect(
    asked: Asked,
    sequence_id: Annotated[int | None, typer.Option("--id", help="One sequence, whole, by its id.")] = None,
    bottom: Annotated[bool, typer.Option("--bottom", help="The least wanted sequences first; default: the most wanted.")] = False,
    domain: Annotated[str | None, typer.Option(help="Only this domain.")] = None,
    by_domain: Annotated[bool, typer.Option("--by-domain", help="A summary of each domain instead of sequences.")] = False,
    by_kind: Annotated[
        bool, typer.Option("--by-kind", help="A summary of each kind of document, as the field corpus.truth says.")
    ] = False,
    by_document: Annotated[
        bool, typer.Option("--documents", help="Whole documents by their own score, with source file and record.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="How many sequences or documents; default 10.")] = None,
    diversity: Annotated[
        bool,
        typer.Option("--diversity", help="How varied and how hard what was kept is, against as many random candidates."),
    ] = False,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Copies among what was kept, exact and near, against all candidates.")
    ] = False,
    contamination: Annotated[
        bool, typer.Option("--contamination", help="Texts of the run's tasks and held-out documents among what was kept.")
    ] = False,
) -> None:
    """Look at what a run kept and dropped: the most or least wanted sequences, decoded, or documents; one by id; or each domain or kind; or how varied it is."""
    from flows.cli.tables import print_documents, print_domains, print_sequences
    from miniplm.run import inspection
    from miniplm.run.status import provide_record
    from miniplm.storage.root import Storage

    summaries = {"--id": sequence_id, "--by-domain": by_domain, "--by-kind": by_kind, "--diversity": diversity}
    if (view := take_one({**summaries, "--documents": by_document})) in summaries:
        refuse_beside(view, {"--bottom": bottom, "--domain": domain, "--limit": limit})
    limit = limit or 10
    config = asked.resolve_config()
    root = Storage(config.storage)
    record = provide_record(root, config)
    if duplicates or contamination:
        _inspect_overlap(root, config, record, duplicates, contamination, asked.as_json)
        return
    if diversity:
        give(asked.as_json, inspection.inspect_diversity(root, record), _print_diversity)
        return
    if by_kind:
        from flows.cli.truth import print_truth
        from miniplm.run.truth import inspect_truth, with_truth

        give(asked.as_json, inspect_truth(root, with_truth(record, config)), partial(print_truth, PlainConsole()))
        return
    if by_domain:
        give(asked.as_json, inspection.inspect_domains(root, record), print_domains)
        return
    if by_document:
        documents = inspection.inspect_documents(root, record, "bottom" if bottom else "top", domain, limit)
        give(asked.as_json, documents, print_documents)
        return
    if sequence_id is not None:
        sequences = [inspection.inspect_sequence(root, record, sequence_id)]
    else:
        sequences = inspection.inspect_sequences(root, record, "bottom" if bottom else "top", domain, limit)
    give(asked.as_json, sequences, partial(print_sequences, whole=sequence_id is not None))


def _inspect_overlap(
    root: Storage, config: RunConfig, record: RunRecord, duplicates: bool, contamination: bool, as_json: bool
) -> None:
    """Looks for what is not known yet, which takes some microseconds a token."""
    from flows.cli.overlap import print_contamination, print_copies
    from miniplm.run.overlap import inspect_overlap
    from miniplm.run.resolution import resolve

    summary = inspect_overlap(root, resolve(config, checks=False), record, duplicates, contamination)
    if as_json:
        print_json(summary.as_json())
        return
    console = PlainConsole()
    if duplicates and summary.copies is not None:
        print_copies(console, summary.copies)
    if contamination and summary.contamination is not None:
        print_contamination(console, summary.contamination)


def _print_diversity(diversity: SelectionDiversity) -> None:
    """One row a measure: its value in what was kept, and in as many random candidates."""
    from flows.cli.tables import make_table
    from miniplm.report.diversity import MEASURES, format_value, list_values

    table = make_table(
        f"{diversity.kept.num_sequences:,} kept and {diversity.random.num_sequences:,} random sequences of {diversity.num_shards} shards",
        "measure",
        "kept",
        "random",
    )
    for (name, _, kind), kept, random in zip(MEASURES, list_values(diversity.kept), list_values(diversity.random), strict=True):
        table.add_row(name, format_value(kept, kind), format_value(random, kind))
    PlainConsole().print(table)


def config(
    target: Annotated[
        str | None, typer.Argument(metavar="[CONFIG|RUN]", help="Check this configuration and print it whole, with all defaults.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print every field with its meaning, unit and default, as JSON Schema.")
    ] = False,
    architectures: Annotated[bool, typer.Option("--architectures", help="List the architecture presets.")] = False,
    overrides: Overrides = None,
    storage: StorageRoot = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Check a configuration, or explain what one may hold."""
    import yaml

    from miniplm.config.run import RunConfig, config_as_dict

    if (view := take_one({"CONFIG": target, "--schema": schema, "--architectures": architectures})) != "CONFIG":
        refuse_beside(view, {"--set": overrides})
    if schema:
        print_json(RunConfig.model_json_schema())
        return
    if architectures:
        _print_architectures(as_json)
        return
    if target is None:
        raise typer.BadParameter("give a CONFIG to check, or --schema, or --architectures")
    content = config_as_dict(resolve_config(target, overrides, storage))
    if as_json:
        print_json(content)
    else:
        print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), end="")


def _print_architectures(as_json: bool) -> None:
    from flows.cli.tables import make_table
    from miniplm.models.presets import PRESETS

    if as_json:
        print_json({name: preset.description for name, preset in PRESETS.items()})
        return
    table = make_table("Architecture presets", "name", "description")
    for name, preset in PRESETS.items():
        table.add_row(name, preset.description)
    PlainConsole().print(table)


def doctor(
    storage: Annotated[str, typer.Option("--storage", help="Storage root to check for reading and writing.")] = DEFAULT_STORAGE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check this machine: versions, devices, memory, the storage root, proxies, Prefect's folder and API. Exit code 2 where there is a problem."""
    start_quietly(verbose)
    from flows.cli.prefect_api import check_prefect_api, check_proxy
    from flows.cli.prefect_home import check_prefect_home
    from flows.cli.tables import print_findings
    from miniplm.run.doctor import diagnose

    findings = [*diagnose(storage), check_proxy(), check_prefect_home(), check_prefect_api()]
    give(as_json, findings, print_findings)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(2)
