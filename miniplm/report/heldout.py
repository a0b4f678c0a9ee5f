"""The table of held-out losses: by domain, with standard errors and differences to the baseline."""

from __future__ import annotations

from collections.abc import Mapping

from miniplm.artifacts import DomainLoss
from miniplm.baselines import find_tokenizer
from miniplm.comparison import LossDifference, compare_in_nats
from miniplm.report.content import ReportContent
from miniplm.report.markup import MISSING, explain, format_count, format_error, format_name, format_nats, make_table
from miniplm.run_record import RunRecord

_ERROR = "± one standard error over documents: how far another draw of held-out documents would be, not another training"


def render_heldout(content: ReportContent) -> str:
    record = content.record
    evaluations = {name: student.evaluation for name, student in record.students.items() if student.evaluation is not None}
    if not evaluations:
        return "<h3>Held-out loss</h3>\n<p>The students have not been evaluated on held-out text.</p>"
    comparisons = {name: value for name, value in content.comparisons.items() if value.baseline is not None}
    baselines = {name: value.baseline for name, value in comparisons.items() if value.baseline is not None}
    in_nats = compare_in_nats(comparisons.values())
    unit = "nats a token" if in_nats else "bits a byte"
    head = [
        "Domain",
        explain(
            "Held-out text",
            "scored tokens of the held-out split; of the fewest and the most where students have tokenizers of their own",
        )
        + "<br><small>tokens</small>",
    ]
    for name in evaluations:
        head += [f"{format_name(name)}<br><small>nats a token</small>"]
        if name in baselines:
            head += [
                explain("difference", f"{unit} less or more than the baseline {baselines[name]}; below 0 is better")
                + f"<br><small>{unit}</small>"
            ]
        head += [f"{format_name(name)}<br><small>bits a byte</small>"]
    table = _Rows(list(evaluations), set(baselines), not _tokenizers_differ(record), in_nats)
    domains = sorted({domain for evaluation in evaluations.values() for domain in evaluation.domains})
    overall = {name: value.overall for name, value in evaluations.items()}
    rows = [table.make_row("<b>All domains</b>", overall, {name: value.overall for name, value in comparisons.items()})]
    rows += [
        table.make_row(
            format_name(domain),
            {name: value.domains.get(domain) for name, value in evaluations.items()},
            {name: value.domains.get(domain) for name, value in comparisons.items()},
        )
        for domain in domains
    ]
    return f"""<h3>Held-out loss</h3>
{make_table(head, rows)}
<p class="note">Loss on documents that no student was trained on; lower is better, ★ marks the lowest of a row. {_describe_baselines(record, baselines)}{_describe_errors(content)}</p>"""


class _Rows:
    """Makes the rows of the table; `by_token`: all students read the same tokens, so the lowest is told by nats a token.

    Students with a `difference` have a column for it, in nats a token or bits a byte.
    """

    def __init__(self, names: list[str], with_difference: set[str], by_token: bool, in_nats: bool) -> None:
        self.names, self.with_difference, self.by_token, self.in_nats = names, with_difference, by_token, in_nats

    def make_row(
        self, title: str, losses: Mapping[str, DomainLoss | None], differences: Mapping[str, LossDifference | None]
    ) -> list[str]:
        known = {name: loss for name, loss in losses.items() if loss is not None}
        values = [loss.nats_per_token if self.by_token else loss.bits_per_byte for loss in known.values()]
        lowest = format_nats(min(values)) if len(values) > 1 else None
        counts = sorted({loss.num_scored_tokens for loss in known.values()}) or [0]
        cells = [title, "–".join(format_count(count) for count in (counts[0], counts[-1])[: len(counts)])]
        for name in self.names:
            loss = known.get(name)
            nats = (
                _format_loss(loss.nats_per_token, loss.nats_standard_error, lowest if self.by_token else None) if loss else MISSING
            )
            bits = _format_loss(loss.bits_per_byte, None, None if self.by_token else lowest) if loss else MISSING
            cells.append(nats)
            if name in self.with_difference:
                cells.append(_format_difference(differences.get(name), self.in_nats))
            cells.append(bits)
        return cells


def _format_difference(difference: LossDifference | None, in_nats: bool) -> str:
    """A difference, coloured by which side is better, with its standard error where that is known."""
    if difference is None:
        return MISSING
    value = difference.nats_per_token if in_nats else difference.bits_per_byte
    error = difference.nats_standard_error if in_nats else difference.bits_standard_error
    kind = "" if value is None or round(value, 3) == 0 else "better" if value < 0 else "worse"
    return f"<span class='{kind}'>{format_nats(value, signed=True)}</span>{format_error(error)}"


def _format_loss(value: float, standard_error: float | None, lowest: str | None) -> str:
    text = format_nats(value)
    marked = f"<span class='best'>★<span class='visually-hidden'> best </span>&nbsp;{text}</span>" if text == lowest else text
    return marked + format_error(standard_error)


def _tokenizers_differ(record: RunRecord) -> bool:
    return len({str(find_tokenizer(record, name)) for name in record.students}) > 1


def _describe_baselines(record: RunRecord, baselines: dict[str, str]) -> str:
    names = sorted(set(baselines.values()))
    if not names:
        text = "Differences are against no baseline: none of the students was trained on random data."
        if any(student.method == "pretrain" for student in record.students.values()):
            text = "No student can be compared with one trained on random data."
    elif len(names) == 1:
        text = f"Differences are against {format_name(names[0])}, which was trained on random data."
    else:
        text = "Differences are against the student most alike that was trained on random data: of the same architecture and seed where there is one."
    if _tokenizers_differ(record):
        text += " Students with different tokenizers compare by bits a byte only."
    return text


def _describe_errors(content: ReportContent) -> str:
    losses = [student.evaluation.overall for student in content.record.students.values() if student.evaluation is not None]
    if all(loss.nats_standard_error is None for loss in losses):
        return ""
    differences = [value.overall for value in content.comparisons.values() if value.overall is not None]
    text = f" {_ERROR}."
    if any(difference.paired for difference in differences):
        text += " That of a difference is over the differences of each document, as both were measured on the same text."
    unpaired = [format_name(name) for name, value in content.comparisons.items() if value.overall and not value.overall.paired]
    if unpaired:
        text += f" Not of the same sequences as its baseline, and so less sure: {', '.join(unpaired)}."
    return text
