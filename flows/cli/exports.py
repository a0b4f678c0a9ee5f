"""`export`: a run's selection as files for other people's trainers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli.options import Asked, on_a_run, print_json, try_again, watched_stage
from flows.cli.stages import begin, require_selection
from miniplm.errors import ConfigError

if TYPE_CHECKING:
    from miniplm.config.exports import ExportConfig
    from miniplm.export.records import ExportManifest


@on_a_run
def export(
    asked: Asked,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Text: jsonl, parquet, hf (for datasets.load_dataset), nanochat. Token ids: megatron, mds (mosaicml-streaming), litdata "
            "(litgpt), ds (datatrove, nanotron), npy (OLMo).",
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="URL", help="A folder that is new or empty: a path, s3://, gs://...")
    ] = None,
    shard_tokens: Annotated[
        int | None,
        typer.Option(
            "--shard-tokens",
            help="Tokens of the corpus a file, at least. Default: 16,777,216 for mds and litdata, else 100,000,000.",
        ),
    ] = None,
    compression: Annotated[str | None, typer.Option("--compression", help="none or zstd, for jsonl.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="NAME",
            help="Token ids of another tokenizer: a hub id or folder. Default: the ids of the corpus.",
        ),
    ] = None,
    eos_token: Annotated[str | None, typer.Option("--eos-token", help="With --tokenizer: the token after each document.")] = None,
    bos_token: Annotated[
        str | None, typer.Option("--bos-token", help="A token to be put before each document. Default: none.")
    ] = None,
    loss_mask: Annotated[
        bool, typer.Option("--loss-mask", help="For mds, ds, npy: which tokens are targets; 0 at the first of each document.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with this export where it is unfinished at the target.")] = False,
) -> None:
    """Turn the selection into files that other people's trainers read, and read each of them back before anything is published.

    `miniplm export RUN --format jsonl --to out/text` writes documents, one a line, with their domain, scores and origin.
    `miniplm export RUN --format megatron --to s3://bucket/tokens` writes the corpus's own token ids for Megatron-LM.
    Without --format and --to it makes the `exports:` of the configuration. docs/export.md says what each format holds, and who reads it.
    """
    storage, plan = begin(asked)
    given = {
        "shard_tokens": shard_tokens,
        "compression": compression,
        "tokenizer": tokenizer,
        "eos_token": eos_token,
        "bos_token": bos_token,
        "loss_mask": loss_mask or None,
    }
    exports = resolve_exports(plan.exports, format, to, {name: value for name, value in given.items() if value is not None})
    # As a stage of a run, which goes on after a kill without being asked.
    resume = resume or format is None
    manifests: list[ExportManifest] = []
    with watched_stage(plan, asked.verbose, asked.as_json) as (console, on_progress):
        plan, corpus, selection = require_selection(storage, plan)
        for one in exports:
            if on_progress is None:
                from flows.export_selection import export_selection

                manifest, _ = export_selection(plan, corpus.corpus_id, selection.selection_id, one, resume)
            else:
                from miniplm.run import stages

                manifest, _ = try_again(partial(stages.export, storage, plan, corpus, selection, one, resume, on_progress))
            manifests.append(manifest)
            if not asked.as_json:
                print_export(console, manifest, one.resolve(selection.selection_id).to)
    if asked.as_json:
        facts = [manifest.as_json() for manifest in manifests]
        print_json(facts[0] if format is not None else facts)


def resolve_exports(
    planned: tuple[ExportConfig, ...], format: str | None, to: str | None, given: dict[str, object]
) -> tuple[ExportConfig, ...]:
    """What a command is asked to export: the one of its options, or else those of the configuration. Raises `ConfigError`."""
    from miniplm.config.exports import FORMATS, ExportConfig
    from miniplm.config.files import check_section

    if format is None and to is None:
        if given:
            raise ConfigError(f"--{next(iter(given)).replace('_', '-')} is for one export: give --format and --to with it")
        if not planned:
            raise ConfigError(
                f"give --format and --to, as the configuration has no `exports:`; the formats are {', '.join(FORMATS)} (docs/export.md)"
            )
        return planned
    if format is None or to is None:
        raise ConfigError(
            f"give --format and --to together; the formats are {', '.join(FORMATS)} (docs/export.md says who reads which)"
        )
    if format not in FORMATS:
        raise ConfigError(
            f"there is no export format {format!r}; the formats are {', '.join(FORMATS)} (docs/export.md says who reads which)"
        )
    return (check_section(ExportConfig, {"format": format, "to": to, **given}, "the export cannot be made"),)


def print_export(console: Console, manifest: ExportManifest, to: str) -> None:
    """What was written, as it was read back."""
    from flows.cli.tables import make_table

    console.print(f"Exported {manifest.num_rows:,} {manifest.rows} as {manifest.format}", style="bold", soft_wrap=True)
    table = make_table("", "domain", "rows", "tokens")
    for name, domain in manifest.domains.items():
        table.add_row(name, f"{domain.num_rows:,}", f"{domain.num_tokens:,}")
    console.print(table)
    ends = (
        "EOS left out"
        if manifest.token_dtype is None
        else f"of which {manifest.num_eos:,} EOS ({manifest.num_eos_added:,} added where the rest of a document was not kept)"
    )
    lines = [
        f"{manifest.num_files:,} files, {manifest.num_bytes / 1e6:,.1f} MB, {manifest.num_tokens:,} tokens, {ends}; "
        "all files were read back, digests and counts agree",
        f"the selection's {manifest.num_source_tokens:,} tokens are all in it"
        + (
            f": {manifest.num_whole:,} whole documents, {manifest.num_parts:,} parts of others whose rest was not kept"
            if manifest.num_whole + manifest.num_parts
            else ""
        ),
        *manifest.notes,
        f"first: {manifest.first_row[:80]!r}",
        f"last:  {manifest.last_row[:80]!r}",
        f"export: {to}",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
