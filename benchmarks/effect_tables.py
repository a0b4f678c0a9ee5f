"""Tables and the plot of the experiment on the effect, out of its rows alone: gains over random text with standard errors over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.effect_arms import Arm
from benchmarks.effect_costs import Flops, count_student
from benchmarks.records import format_table
from miniplm.config.proxy import ProxyConfig
from miniplm.proxy.measuring import ProxyFidelity

Row = dict[str, Any]


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


def rows_of(rows: Sequence[Row], arm: str) -> list[Row]:
    """An arm's rows by seed; of two for one seed the later."""
    by_seed = {row["seed"]: row for row in rows if row.get("arm") == arm and "skipped" not in row}
    return [by_seed[seed] for seed in sorted(by_seed)]


def find_gain(rows: Sequence[Row], arm: Arm, measure: Callable[[Row], float]) -> Estimate | None:
    """How much lower an arm's loss is than its baseline's of the same seed, over the seeds that both have; None without any."""
    baseline = {row["seed"]: measure(row) for row in rows_of(rows, arm.baseline)}
    gains = [baseline[row["seed"]] - measure(row) for row in rows_of(rows, arm.name) if row["seed"] in baseline]
    return estimate(gains) if gains else None


def find_gains(rows: Sequence[Row], arm: Arm) -> list[tuple[float, Estimate]]:
    """Gains along the training: tokens a parameter, and the gain of the milestone there; of other steps than the baseline's at the end alone."""
    own = rows_of(rows, arm.name)
    gains: list[tuple[float, Estimate]] = []
    if own and arm.budget != "steps":
        gain = find_gain(rows, arm, lambda row: row["heldout"])
        return [] if gain is None else [(own[0]["num_tokens"] / own[0]["num_parameters"], gain)]
    for index, (num_tokens, _) in enumerate(own[0]["curve"] if own else []):
        gain = find_gain(rows, arm, lambda row, index=index: row["curve"][index][1])  # type: ignore[misc]
        if gain is not None:
            gains.append((num_tokens / own[0]["num_parameters"], gain))
    return gains


def find_saving(rows: Sequence[Row], arm: Arm) -> float | None:
    """With how many times fewer tokens the arm is at its baseline's last loss, between milestones by the logarithm; None where it never is.

    Of means over the seeds; None too of other steps than the baseline's, which FLOPs are to be compared by.
    """
    if arm.budget != "steps":
        return None
    own, baseline = rows_of(rows, arm.name), rows_of(rows, arm.baseline)
    if not own or not baseline:
        return None
    target = mean(row["curve"][-1][1] for row in baseline)
    points = [(row[0], mean(other["curve"][index][1] for other in own)) for index, row in enumerate(own[0]["curve"])]
    for (tokens, loss), (later_tokens, later_loss) in zip(points, points[1:], strict=False):  # noqa: RUF007 - pairs of points
        if loss > target >= later_loss:
            share = (loss - target) / (loss - later_loss)
            return float(points[-1][0] / math.exp(math.log(tokens) + share * math.log(later_tokens / tokens)))
    return None


def tabulate_arms(rows: Sequence[Row], arms: Sequence[Arm]) -> str:
    header = [
        "arm",
        "text",
        "seeds",
        "parameters",
        "tokens a parameter",
        "epochs",
        "clean kept",
        "loss, nats a token",
        "gain",
        "tokens saved",
        "bits a byte",
        "FLOPs in all",
    ]
    lines = []
    for arm in arms:
        own = rows_of(rows, arm.name)
        gain = None if arm.name == arm.baseline else find_gain(rows, arm, lambda row: row["heldout"])
        saving = None if arm.name == arm.baseline else find_saving(rows, arm)
        kept = own[0]["kept"]
        lines.append(
            [
                arm.title,
                arm.text,
                str(len(own)),
                f"{own[0]['num_parameters']:,}",
                f"{own[0]['num_tokens'] / own[0]['num_parameters']:.2f}",
                f"{own[0]['epochs']:.1f}",
                "-" if kept is None else "{:.0%}".format(kept["kinds"]["clean"][0] / max(kept["kinds"]["clean"][1], 1)),
                estimate([row["heldout"] for row in own]).show(),
                "-" if gain is None else gain.show(signed=True),
                "-" if saving is None else f"{saving:.2f}x",
                show_bits(own),
                f"{count_arm(rows, arm).in_all:.2e}",
            ]
        )
    return format_table(header, lines)


def show_bits(own: Sequence[Row]) -> str:
    """The losses of rows in bits a byte, by which vocabularies can be compared."""
    bits = [row["bits_per_byte"] for row in own if row.get("bits_per_byte") is not None]
    return estimate(bits).show() if len(bits) == len(own) else "-"


def tabulate_domains(rows: Sequence[Row], arms: Sequence[Arm]) -> str:
    """Each domain's gain, and by what its share of the kept text differs from its share of all (of clean text where an arm has only that)."""
    domains = sorted({domain for row in rows for domain in row.get("domains", ())})
    lines = []
    for arm in arms:
        if arm.name == arm.baseline:
            continue
        cells = [name_arm(rows, arm)]
        kept = rows_of(rows, arm.name)[0]["kept"]
        for domain in domains:
            gain = find_gain(rows, arm, lambda row, domain=domain: row["domains"][domain])  # type: ignore[misc]
            share = "" if kept is None else f" ({share_of(kept['domains'], domain):.0%})"
            cells.append("-" if gain is None else gain.show(signed=True) + share)
        lines.append(cells)
    return format_table(["gain (share of the kept text)", *domains], lines)


def share_of(kept: dict[str, list[int]], name: str) -> float:
    """The share of the kept tokens that one domain has."""
    return kept[name][0] / max(sum(tokens for tokens, _ in kept.values()), 1)


def tabulate_kinds(rows: Sequence[Row], arms: Sequence[Arm]) -> str:
    """The share of the tokens of each kind that each rule kept."""
    shown = [
        arm
        for arm in arms
        if arm.text == "dirty"
        and arm.student is None
        and arm.vocabulary == "own"
        and rows_of(rows, arm.name)[0]["kept"] is not None
    ]
    kinds = sorted(
        {kind for arm in shown for kind in rows_of(rows, arm.name)[0]["kept"]["kinds"]}, key=lambda kind: (kind != "clean", kind)
    )
    lines = []
    for arm in shown:
        kept = rows_of(rows, arm.name)[0]["kept"]["kinds"]
        lines.append([arm.title, *(f"{kept[kind][0] / max(kept[kind][1], 1):.0%}" for kind in kinds)])
    return format_table(["tokens kept of", *kinds], lines)


def count_arm(rows: Sequence[Row], arm: Arm) -> Flops:
    """What one student of an arm costs, with its scores, which several may share."""
    facts = {row["scores"]: row for row in rows if "scores" in row}
    return count_student(arm, rows_of(rows, arm.name)[0], facts.get(arm.scores.name))


def tabulate_costs(rows: Sequence[Row], arms: Sequence[Arm]) -> str:
    """FLOPs of each arm: 2 N a token that a model reads, 6 N one that it is trained on."""
    lines = []
    for arm in arms:
        flops = count_arm(rows, arm)
        parts = (flops.teacher, flops.reference, flops.proxy, flops.training, flops.in_all)
        lines.append([name_arm(rows, arm), *(f"{part:.2e}" if part else "-" for part in parts)])
    return format_table(["FLOPs", "teacher", "reference", "proxy", "training", "in all"], lines)


def name_arm(rows: Sequence[Row], arm: Arm) -> str:
    """An arm's title with what sets it apart from others of that title."""
    other = arm.student is not None or arm.vocabulary == "corpus"
    return f"{arm.title} ({arm.text})" + (f", {rows_of(rows, arm.name)[0]['num_parameters'] / 1e6:.1f} M" if other else "")


def tabulate_proxies(rows: Sequence[Row]) -> str:
    """How well each proxy predicts, by the product's gate; '' where there is none."""
    lines = []
    for row in {row["scores"]: row for row in rows if "fidelity" in row}.values():
        found = ProxyFidelity(**row["fidelity"])
        is_refused = not found.passes(ProxyConfig().min_overlap)
        lines.append(
            [
                row["scores"],
                f"{row['num_labels']:,}",
                f"{found.overlap:.0%} ± {found.overlap_error:.0%}",
                f"{found.chance:.0%}",
                f"{found.spearman:.3f}",
                "refuses" if is_refused else "accepts",
            ]
        )
    header = ["proxy", "labels", "overlap with full scores", "chance", "Spearman", f"the gate at {ProxyConfig().min_overlap:g}"]
    return format_table(header, lines) if lines else ""


def tabulate_scores(rows: Sequence[Row]) -> str:
    header = [
        "difference score",
        "candidates",
        "clean",
        "between domains",
        "between kinds",
        "between domains, clean text",
        "teacher NLL",
        "reference NLL",
    ]
    lines = [
        [
            row["scores"],
            f"{row['num_candidates']:,}",
            f"{row['num_clean']:,}",
            *(f"{row[name]:.0%}" for name in ("between_domains", "between_kinds", "between_domains_of_clean")),
            *(f"{row[name]:.3f}" for name in ("teacher_nll_of_clean", "reference_nll_of_clean")),
        ]
        for row in {row["scores"]: row for row in rows if "scores" in row}.values()
    ]
    return format_table(header, lines)


def print_tables(rows: Sequence[Row], arms: Sequence[Arm]) -> None:
    print("Held-out loss on clean text, and the gain over random text of the same seed (mean ± standard error over seeds)\n")
    print(tabulate_arms(rows, arms))
    print("\nBy domain\n\n" + tabulate_domains(rows, arms))
    print("\nWhat was kept\n\n" + tabulate_kinds(rows, arms))
    print("\nThe difference score's variance, and mean NLLs of clean text in nats a token\n\n" + tabulate_scores(rows))
    if proxies := tabulate_proxies(rows):
        print("\nProxies, by what they predict of labels that they had not seen\n\n" + proxies)
    print("\nCosts of one student, with scores that all students of the arm share\n\n" + tabulate_costs(rows, arms))
    for row in {row["arm"]: row for row in rows if "skipped" in row}.values():
        print(f"\nLeft out: {row['arm']}. {row['skipped']}")


def draw_gains(rows: Sequence[Row], arms: Sequence[Arm], path: Path) -> None:
    """Gains by tokens a parameter, dirty text and clean beside each other, as PNG or SVG by the file's ending; bars are one standard error."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    texts = [text for text in ("dirty", "clean") if any(arm.text == text for arm in arms)]
    colours = ("#4477aa", "#cc6677", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#999999", "#000000", "#ee7733")
    titles = list(dict.fromkeys(arm.title for arm in arms if arm.name != arm.baseline))
    with rc_context({"svg.hashsalt": "effect", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 5.4), layout="constrained")
        panels = figure.subplots(1, len(texts), squeeze=False, sharey=True)[0]
        for text, axes in zip(texts, panels, strict=True):
            for index, arm in enumerate(arms):
                gains = find_gains(rows, arm) if arm.text == text and arm.name != arm.baseline else []
                if not gains:
                    continue
                own = rows_of(rows, arm.name)[0]
                is_other = arm.student is not None or arm.vocabulary == "corpus"
                label = f"{arm.title} ({own['num_parameters'] / 1e6:.1f} M parameters)" if is_other else arm.title
                axes.errorbar(
                    [place * 1.01 ** (index % 5 - 2) for place, _ in gains],  # a little apart, so that bars can be told
                    [gain.mean for _, gain in gains],
                    yerr=[gain.error or 0.0 for _, gain in gains],
                    color=colours[titles.index(arm.title) % len(colours)],
                    linestyle="--" if is_other else "-",
                    marker=".",
                    linewidth=1.2,
                    elinewidth=0.8,
                    label=label,
                )
            axes.axhline(0, color="black", linewidth=1)
            axes.set_xscale("log")
            left, right = axes.get_xlim()
            axes.xaxis.set_major_formatter("{x:g}")
            # Over more decades the labels between powers of ten would lie on each other.
            axes.xaxis.set_minor_formatter("{x:g}" if right < 20 * left else NullFormatter())
            axes.set_xlabel("tokens of training a parameter")
            axes.set_title("two fifths of the documents are dirt" if text == "dirty" else "the clean part alone", fontsize=10)
        panels[0].set_ylabel(
            "gain over random text, nats a token of clean held-out text\n(up: better; bars: one standard error over seeds)"
        )
        handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
