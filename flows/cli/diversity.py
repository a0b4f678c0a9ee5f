"""`inspect --diversity` as a table."""

from __future__ import annotations

from flows.cli.tables import make_table
from flows.cli.terminal import PlainConsole
from miniplm.report.diversity import MEASURES, format_value, list_values
from miniplm.selection.diversity_sample import SelectionDiversity


def print_diversity(diversity: SelectionDiversity) -> None:
    """One row a measure: its value in what was kept, and in as many random candidates."""
    table = make_table(
        f"{diversity.kept.num_sequences:,} kept and {diversity.random.num_sequences:,} random sequences of {diversity.num_shards} shards",
        "measure",
        "kept",
        "random",
    )
    for (name, _, kind), kept, random in zip(MEASURES, list_values(diversity.kept), list_values(diversity.random), strict=True):
        table.add_row(name, format_value(kept, kind), format_value(random, kind))
    PlainConsole().print(table)
