"""What students of several methods and seeds came to on held-out text: losses by domain, differences from the baseline, standard errors.

    python -m benchmarks.effect --storage ./data --runs effect-0 effect-1 effect-2 --plot docs/results/NAME.svg

Reads what `miniplm run` (or `train` and `evaluate`) left at the storage root; computes no model. A method that no run has trained
is shown as `not run yet`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.records import format_table
from miniplm import layout
from miniplm.errors import MiniplmError, RunError
from miniplm.records.manifests import Evaluation, TrainingManifest
from miniplm.records.selections import SelectionManifest
from miniplm.selection.ranking import find_selection
from miniplm.storage.root import Storage, digest_content

BASELINE = "pretrain"
EXPECTED = ("pretrain", "miniplm", "vanilla-kd", "seqkd", "miniplm+vanilla-kd")
NOT_RUN = "not run yet"


@dataclass(frozen=True)
class StudentRow:
    """A trained and evaluated student. Losses are nats a scored held-out token; `macro` is their plain mean over the domains."""

    run: str
    student: str
    method: str
    seed: int
    training_id: str
    selection_id: str | None
    num_parameters: int
    num_steps: int
    num_tokens: int
    learning_rate: float
    seconds: float
    final_loss: float
    heldout: float
    macro: float
    domains: dict[str, float]
    device: str


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard error; None where one seed tells none."""

    mean: float
    error: float | None
    num: int

    def show(self, signed: bool = False) -> str:
        number = f"{self.mean:+.3f}" if signed else f"{self.mean:.3f}"
        return number if self.error is None else f"{number} ± {self.error:.3f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of the mean, s / sqrt(n) with s of n - 1 degrees of freedom."""
    return Estimate(mean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None, len(values))


def read_students(storage: Storage, runs: Sequence[str]) -> list[StudentRow]:
    """The evaluated students of some runs. Raises `RunError` for a run without a student's folder."""
    selections = _index_selections(storage)
    rows = []
    for run in runs:
        names = storage.list_names(f"{layout.run_folder(run)}/students")
        if not names:
            raise RunError(
                f"{storage.root} has no trained student of run {run!r}; train it with `miniplm run CONFIG --set name={run}`"
            )
        for name in names:
            folder = layout.student_folder(run, name)
            if storage.exists(f"{folder}/training.json") and storage.exists(f"{folder}/evaluation.json"):
                training = TrainingManifest.model_validate(storage.read_json(f"{folder}/training.json"))
                evaluation = Evaluation.model_validate(storage.read_json(f"{folder}/evaluation.json"))
                rows.append(_make_row(run, name, training, evaluation, selections))
    return rows


def _make_row(run: str, name: str, training: TrainingManifest, evaluation: Evaluation, selections: dict[str, str]) -> StudentRow:
    domains = {domain: loss.nats_per_token for domain, loss in evaluation.domains.items()}
    return StudentRow(
        run=run,
        student=name,
        method=training.recipe["method"],
        seed=training.recipe["training"]["seed"],
        training_id=training.training_id,
        selection_id=selections.get(training.recipe["data"].get("selection", "")),
        num_parameters=training.num_parameters,
        num_steps=training.num_steps,
        num_tokens=training.num_tokens,
        learning_rate=training.recipe["training"]["learning_rate"],
        seconds=round(training.seconds, 1),
        final_loss=training.final_loss,
        heldout=evaluation.overall.nats_per_token,
        macro=mean(domains.values()),
        domains=domains,
        device=training.device,
    )


def _index_selections(storage: Storage) -> dict[str, str]:
    """Selection ids by the digest under which a training's recipe knows them."""
    found = (find_selection(storage, name) for name in storage.list_names("selections"))
    return {
        digest_content([[shard.shard_index, shard.digest] for shard in manifest.shards], length=16): manifest.selection_id
        for manifest in found
        if manifest is not None
    }


def group_by_label(rows: Sequence[StudentRow], main_selection: str | None) -> dict[str, list[StudentRow]]:
    """Rows by what was trained: the method, and the selection where it is not the main one. Expected methods come first, also empty."""
    groups: dict[str, list[StudentRow]] = {method: [] for method in EXPECTED}
    for row in rows:
        other = row.selection_id not in (None, main_selection)
        groups.setdefault(f"{row.method} on {row.selection_id}" if other else row.method, []).append(row)
    return groups


def find_main_selection(rows: Sequence[StudentRow]) -> str | None:
    """The selection of the first `miniplm` student, so of the first run that is given; others are shown beside it."""
    return next((row.selection_id for row in rows if row.method == "miniplm" and row.selection_id), None)


def compare(rows: Sequence[StudentRow], baseline: Sequence[StudentRow], measure: Callable[[StudentRow], float]) -> Estimate | None:
    """The mean difference from the baseline's student of the same seed, and its standard error over the seeds; None without a pair."""
    by_seed = {row.seed: measure(row) for row in baseline}
    differences = [measure(row) - by_seed[row.seed] for row in rows if row.seed in by_seed]
    return estimate(differences) if differences else None


def make_measures(rows: Sequence[StudentRow], selection: SelectionManifest | None) -> dict[str, Callable[[StudentRow], float]]:
    """What students are compared by: all held-out tokens, the plain mean of domains, the mean by the kept mix, and each domain."""
    measures: dict[str, Callable[[StudentRow], float]] = {
        "all tokens": lambda row: row.heldout,
        "mean of domains": lambda row: row.macro,
    }
    if selection is not None:
        kept = {domain: counts.num_selected_tokens for domain, counts in selection.domains.items()}
        total = sum(kept.values())
        measures["by the kept mix"] = lambda row: sum(loss * kept.get(domain, 0) / total for domain, loss in row.domains.items())
    for domain in sorted({domain for row in rows for domain in row.domains}):
        measures[domain] = lambda row, domain=domain: row.domains[domain]  # type: ignore[misc]
    return measures


def tabulate_losses(groups: dict[str, list[StudentRow]], measures: dict[str, Callable[[StudentRow], float]], signed: bool) -> str:
    """A column a method, a row a measure: the losses, or (signed) the differences from the baseline."""
    labels = [label for label in groups if not (signed and label == BASELINE)]
    header = ["held-out loss", *(f"{label} (n={len(groups[label])})" if groups[label] else label for label in labels)]
    lines = []
    for name, measure in measures.items():
        cells = [name]
        for label in labels:
            found = (
                compare(groups[label], groups[BASELINE], measure)
                if signed
                else estimate([measure(row) for row in groups[label]])
                if groups[label]
                else None
            )
            cells.append(NOT_RUN if found is None else found.show(signed))
        lines.append(cells)
    return format_table(header, lines)


def tabulate_trainings(groups: dict[str, list[StudentRow]]) -> str:
    header = ["method", "seeds", "parameters", "steps", "tokens", "peak lr", "final training loss", "s a training"]
    lines = []
    for label, rows in groups.items():
        if not rows:
            lines.append([label, NOT_RUN, *["-"] * (len(header) - 2)])
            continue
        lines.append(
            [
                label,
                ", ".join(str(row.seed) for row in rows),
                f"{rows[0].num_parameters:,}",
                "/".join(sorted({f"{row.num_steps:,}" for row in rows})),
                f"{mean(row.num_tokens for row in rows):,.0f}",
                "/".join(sorted({f"{row.learning_rate:g}" for row in rows})),
                estimate([row.final_loss for row in rows]).show(),
                f"{mean(row.seconds for row in rows):,.0f}",
            ]
        )
    return format_table(header, lines)


def draw_differences(
    groups: dict[str, list[StudentRow]],
    measures: dict[str, Callable[[StudentRow], float]],
    selection: SelectionManifest | None,
    path: Path,
) -> None:
    """Differences from the baseline by domain, as a PNG or SVG by the file's ending; bars are two standard errors to each side."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    labels = [label for label, rows in groups.items() if label != BASELINE and rows]
    names = list(measures)
    with rc_context({"svg.hashsalt": "effect", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 2.0 + 0.34 * len(names)), layout="constrained")
        axes = figure.subplots()
        colours = ("#4477aa", "#cc6677", "#228833", "#ccbb44", "#aa3377", "#66ccee")
        for index, label in enumerate(labels):
            found = [compare(groups[label], groups[BASELINE], measure) for measure in measures.values()]
            places = [row + 0.7 * (index + 0.5) / len(labels) - 0.35 for row in range(len(names))]
            axes.errorbar(
                [value.mean if value else math.nan for value in found],
                places,
                xerr=[2 * (value.error or 0.0) if value else 0.0 for value in found],
                fmt="o",
                markersize=5,
                color=colours[index % len(colours)],
                label=label,
            )
        axes.axvline(0, color="black", linewidth=1)
        axes.set(yticks=range(len(names)), yticklabels=[_name_measure(name, selection) for name in names])
        axes.set_xlabel(
            "held-out loss less that of pretrain, nats a token\n(left: better; bars: ± 2 standard errors over seeds, none for one seed)"
        )
        axes.invert_yaxis()
        figure.legend(loc="outside upper center", ncols=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)


def _name_measure(name: str, selection: SelectionManifest | None) -> str:
    if selection is None or name not in selection.domains:
        return name
    counts = selection.domains[name]
    return f"{name} ({counts.num_selected / counts.num_candidates:.0%} kept)"


def summarise(groups: dict[str, list[StudentRow]], measures: dict[str, Callable[[StudentRow], float]]) -> dict[str, Any]:
    """The numbers of both tables as JSON: by method and measure the loss and the difference, or `not run yet`."""
    facts: dict[str, Any] = {}
    for label, rows in groups.items():
        if not rows:
            facts[label] = NOT_RUN
            continue
        facts[label] = {}
        for name, measure in measures.items():
            difference = None if label == BASELINE else compare(rows, groups[BASELINE], measure)
            facts[label][name] = {"loss": asdict(estimate([measure(row) for row in rows]))}
            if difference is not None:
                facts[label][name]["difference"] = asdict(difference)
    return facts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effect", description=__doc__.partition("\n")[0])
    parser.add_argument("--storage", default="./data", help="storage root of the runs")
    parser.add_argument(
        "--runs", nargs="+", required=True, metavar="RUN", help="runs that differ in their seeds, or in their students"
    )
    parser.add_argument("--json", action="store_true", help="print the rows and the estimates as JSON instead of tables")
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="write the raw rows there, one JSON object a line, and the methods not run"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the differences from the baseline (.svg or .png)")
    given = parser.parse_args(arguments)
    storage = Storage(given.storage)
    try:
        rows = read_students(storage, given.runs)
    except MiniplmError as error:
        print(f"effect: {error}", file=sys.stderr)
        return 2
    main_selection = find_main_selection(rows)
    selection = find_selection(storage, main_selection) if main_selection else None
    groups = group_by_label(rows, main_selection)
    measures = make_measures(rows, selection)
    if given.rows:
        lines = [asdict(row) for row in rows] + [{"method": label, "status": NOT_RUN} for label in EXPECTED if not groups[label]]
        given.rows.parent.mkdir(parents=True, exist_ok=True)
        given.rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if given.plot:
        draw_differences(groups, measures, selection, given.plot)
    if given.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "estimates": summarise(groups, measures)}, indent=2))
        return 0
    print("Trainings\n\n" + tabulate_trainings(groups))
    print("\nHeld-out loss, nats a token, mean ± standard error over seeds\n\n" + tabulate_losses(groups, measures, signed=False))
    print(f"\nLess {BASELINE} of the same seed\n\n" + tabulate_losses(groups, measures, signed=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
