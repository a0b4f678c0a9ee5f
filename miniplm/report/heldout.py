"""The table of held-out losses: by domain, with standard errors and differences to the baseline."""

from __future__ import annotations

from collections.abc import Mapping

from miniplm.artifacts import DomainLoss
from miniplm.report.content import ReportContent
from miniplm.report.differences import ALL_DOMAINS, choose_baselines
from miniplm.report.markup import MISSING, explain, format_count, format_error, format_name, format_nats, make_table
from miniplm.run_record import RunRecord
from miniplm.sequence_losses import PairedDifference

_ERROR = "± one standard error over documents: how far another draw of held-out documents would be, not another training"


def render_heldout(content: ReportContent) -> str:
    record = content.record
    evaluations = {name: student.evaluation for name, student in record.students.items() if student.evaluation is not None}
    if not evaluations:
        return "<h3>Held-out loss</h3>\n<p>The students have not been evaluated on held-out text.</p>"
    baselines = choose_baselines(record)
    head = ["Domain", explain("Held-out text", "scored tokens of the held-out split") + "<br><small>tokens</small>"]
    for name in evaluations:
        head += [f"{format_name(name)}<br><small>nats a token</small>"]
        if name in baselines:
            head += [
                explain("difference", f"nats a token less or more than the baseline {baselines[name]}; below 0 is better")
                + "<br><small>nats a token</small>"
            ]
        head += [f"{format_name(name)}<br><small>bits a byte</small>"]
    table = _Rows(list(evaluations), baselines, not _tokenizers_differ(record))
    domains = sorted({domain for evaluation in evaluations.values() for domain in evaluation.domains})
    overall = {name: value.overall for name, value in evaluations.items()}
    rows = [table.make_row("<b>All domains</b>", overall, _of_domain(content.differences, ALL_DOMAINS))]
    rows += [
        table.make_row(
            format_name(domain),
            {name: value.domains.get(domain) for name, value in evaluations.items()},
            _of_domain(content.differences, domain),
        )
        for domain in domains
    ]
    return f"""<h3>Held-out loss</h3>
{make_table(head, rows)}
<p class="note">Loss on documents that no student was trained on; lower is better, ★ marks the lowest of a row. {_describe_baselines(record, baselines)}{_describe_errors(content)}</p>"""


class _Rows:
    """Makes the rows of the table; `by_token`: all students read the same tokens, so the lowest is told by nats a token."""

    def __init__(self, names: list[str], baselines: dict[str, str], by_token: bool) -> None:
        self.names, self.baselines, self.by_token = names, baselines, by_token

    def make_row(self, title: str, losses: Mapping[str, DomainLoss | None], differences: dict[str, PairedDifference]) -> list[str]:
        known = {name: loss for name, loss in losses.items() if loss is not None}
        values = [loss.nats_per_token if self.by_token else loss.bits_per_byte for loss in known.values()]
        lowest = format_nats(min(values)) if len(values) > 1 else None
        cells = [title, format_count(max((loss.num_scored_tokens for loss in known.values()), default=0))]
        for name in self.names:
            loss = known.get(name)
            nats = (
                _format_loss(loss.nats_per_token, loss.nats_standard_error, lowest if self.by_token else None) if loss else MISSING
            )
            bits = _format_loss(loss.bits_per_byte, None, None if self.by_token else lowest) if loss else MISSING
            cells.append(nats)
            if name in self.baselines:
                baseline = known.get(self.baselines[name])
                cells.append(
                    format_difference(loss.nats_per_token - baseline.nats_per_token, differences.get(name))
                    if loss is not None and baseline is not None
                    else MISSING
                )
            cells.append(bits)
        return cells


def format_difference(difference: float, paired: PairedDifference | None = None) -> str:
    """A difference in nats a token, coloured by which side is better, with its standard error where that is known."""
    kind = "" if round(difference, 3) == 0 else "better" if difference < 0 else "worse"
    error = format_error(paired.standard_error if paired is not None else None)
    return f"<span class='{kind}'>{format_nats(difference, signed=True)}</span>{error}"


def _format_loss(value: float, standard_error: float | None, lowest: str | None) -> str:
    text = format_nats(value)
    marked = f"<span class='best'>★<span class='visually-hidden'> best </span>&nbsp;{text}</span>" if text == lowest else text
    return marked + format_error(standard_error)


def _of_domain(differences: dict[str, dict[str, PairedDifference]], domain: str) -> dict[str, PairedDifference]:
    return {name: by_domain[domain] for name, by_domain in differences.items() if domain in by_domain}


def _tokenizers_differ(record: RunRecord) -> bool:
    return len({str(record.find_student_settings(name).get("tokenizer")) for name in record.students}) > 1


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
    paired = " That of a difference is over the differences of each document, as both were measured on the same text."
    return f" {_ERROR}.{paired if content.differences else ''}"
