"""`sweep`: one configuration with some of its fields at several values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import DEFAULT_STORAGE, AsJson, StorageRoot, Verbose, print_json, resolve_config, start_quietly, watched_flow
from flows.cli.terminal import PlainConsole

if TYPE_CHECKING:
    from miniplm.records.sweep import SweepRecord
    from miniplm.run.sweep import SweptResult
    from miniplm.storage.root import Storage

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE,...",
        help="Values of a field, with commas between them; may be repeated. `--set selection.ratio=0.3,0.5 --set teacher.model=a,b` makes four runs.",
    ),
]


def sweep(
    target: Annotated[str | None, typer.Argument(metavar="CONFIG|RUN", help="The configuration that all runs start from.")] = None,
    settings: Settings = None,
    storage: StorageRoot = DEFAULT_STORAGE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Run a configuration for each combination of values: ratios, rules, teachers, references, students. One table and one page for all.

    What runs share is computed once: ratios cost no new scores, a second reference no second teacher. A sweep that is killed goes on
    where it was, and may grow: with more values, only theirs are new. On a fleet all runs are at work at the same time.
    """
    start_quietly(verbose)
    config = resolve_config(target, (), storage)
    with watched_flow(verbose, as_json):
        from flows.sweep import sweep as flow
        from miniplm.run.sweep import describe_sweep
        from miniplm.storage.root import Storage

        root = Storage(config.storage)
        record = flow(config, settings or [])
    results = describe_sweep(root, record)
    if as_json:
        print_json({"name": record.name, "runs": [result.as_json() for result in results]})
        return
    _print_sweep(root, record, results)


def _shorten(fields: Sequence[str]) -> list[str]:
    """The last part of each field's name where no other has the same, as a terminal is narrow."""
    ends = [field.rsplit(".", 1)[-1] for field in fields]
    return [end if ends.count(end) == 1 else field for field, end in zip(fields, ends, strict=True)]


def _print_sweep(storage: Storage, sweep: SweepRecord, results: list[SweptResult]) -> None:

    from flows.cli.results import with_error
    from flows.cli.tables import make_table
    from miniplm import layout
    from miniplm.run.sweep import compare_sweep_in_nats, has_several_texts, read_difference, read_loss

    console, in_nats = PlainConsole(), compare_sweep_in_nats(results)
    table = make_table(
        f"Sweep {sweep.name}", *_shorten(sweep.fields), "student", "kept", "tokens", "held-out loss", "less baseline"
    )
    for column in table.columns[: len(sweep.fields) + 1]:
        column.justify = "left"
    for result in results:
        for student in result.students or (None,):
            loss = None if student is None else student.loss
            difference = None if student is None else student.difference
            table.add_row(
                *result.values.values(),
                "-" if student is None else student.name,
                "-" if result.num_selected is None else f"{result.num_selected:,} of {result.num_candidates:,}",
                "-" if result.num_selected_tokens is None else f"{result.num_selected_tokens:,}",
                "-" if loss is None else with_error(*read_loss(loss, in_nats)),
                "-" if difference is None else with_error(*read_difference(difference, in_nats), sign="+"),
            )
    console.print(table)
    unit = "nats a token" if in_nats else "bits a byte, as tokenizers differ"
    console.print(f"{unit}; below 0 is better; ± standard error over held-out documents", style="dim", soft_wrap=True)
    if has_several_texts(results):
        console.print(
            "the runs are measured on different held-out texts: compare their differences, not their losses",
            style="yellow",
            soft_wrap=True,
        )
    console.print(f"page: {storage.url(layout.sweep_page(sweep.name))}", soft_wrap=True)
