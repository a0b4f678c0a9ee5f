"""The table of held-out losses: by domain, with standard errors and differences to the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from miniplm.config.methods import BASELINE_METHOD
from miniplm.evaluation.baselines import find_tokenizer
from miniplm.evaluation.comparison import LossDifference, StudentComparison, compare_in_nats
from miniplm.records.manifests import DomainLoss
from miniplm.records.run import RunRecord
from miniplm.report.content import ReportContent
from miniplm.report.markup import MISSING, explain, fill, format_count, format_error, format_name, format_nats, mark_best, render


def render_heldout(content: ReportContent) -> Markup:
    """The table of the text that the run is about, and a second one where the corpus's own split was measured beside text from elsewhere."""
    tables = _render_text(content.record, content.comparisons, content.overlap)
    if any(student.on_split is not None for student in content.record.students.values()):
        tables += _render_text(content.record.on_own_split(), content.split_comparisons, None)
    return tables


def _render_text(record: RunRecord, compared: Mapping[str, StudentComparison], overlap: str | None) -> Markup:
    evaluations = {name: student.evaluation for name, student in record.students.items() if student.evaluation is not None}
    if not evaluations:
        return Markup("<h3>Held-out loss</h3>\n<p>The students have not been evaluated on held-out text.</p>")
    comparisons = {name: value for name, value in compared.items() if value.baseline is not None}
    baselines = {name: value.baseline for name, value in comparisons.items() if value.baseline is not None}
    in_nats = compare_in_nats(comparisons.values())
    by_token = len({str(find_tokenizer(record, name)) for name in record.students}) == 1
    table = _Rows(list(evaluations), set(baselines), by_token, in_nats)
    rows = [
        table.make_row(
            Markup("<b>All domains</b>"),
            {name: value.overall for name, value in evaluations.items()},
            {name: value.overall for name, value in comparisons.items()},
        ),
        *(
            table.make_row(
                format_name(domain),
                {name: value.domains.get(domain) for name, value in evaluations.items()},
                {name: value.domains.get(domain) for name, value in comparisons.items()},
            )
            for domain in sorted({domain for evaluation in evaluations.values() for domain in evaluation.domains})
        ),
    ]
    overall = {name: value.overall for name, value in compared.items() if value.overall is not None}
    return render(
        "heldout.html",
        head=table.make_head(baselines),
        title=record.name_text(),
        overlap=overlap,
        rows=rows,
        baselines=sorted(set(baselines.values())),
        has_pretrained=any(student.method == BASELINE_METHOD for student in record.students.values()),
        by_token=by_token,
        has_errors=any(evaluation.overall.nats_standard_error is not None for evaluation in evaluations.values()),
        is_paired=any(difference.paired for difference in overall.values()),
        unpaired=[name for name, difference in overall.items() if not difference.paired],
    )


@dataclass(frozen=True)
class _Rows:
    """Makes the rows of the table; `by_token`: all students read the same tokens, so the lowest is told by nats a token.

    Students with a `difference` have a column for it, in nats a token or bits a byte.
    """

    names: list[str]
    with_difference: set[str]
    by_token: bool
    in_nats: bool

    def make_head(self, baselines: Mapping[str, str]) -> list[str]:
        unit = "nats a token" if self.in_nats else "bits a byte"
        text = explain(
            "Held-out text",
            "scored tokens of the held-out text; of the fewest and the most where students have tokenizers of their own",
        )
        head = ["Domain", _with_unit(text, "tokens")]
        for name in self.names:
            head.append(_with_unit(format_name(name), "nats a token"))
            if name in self.with_difference:
                meaning = f"{unit} less or more than the baseline {baselines[name]}; below 0 is better"
                head.append(_with_unit(explain("difference", meaning), unit))
            head.append(_with_unit(format_name(name), "bits a byte"))
        return head

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
            nats = bits = MISSING
            if loss is not None:
                nats = mark_best(format_nats(loss.nats_per_token), lowest if self.by_token else None)
                nats += format_error(loss.nats_standard_error)
                bits = mark_best(format_nats(loss.bits_per_byte), None if self.by_token else lowest)
            cells.append(nats)
            if name in self.with_difference:
                cells.append(_format_difference(differences.get(name), self.in_nats))
            cells.append(bits)
        return cells


def _with_unit(title: str, unit: str) -> Markup:
    return fill("{}<br><small>{}</small>", title, unit)


def _format_difference(difference: LossDifference | None, in_nats: bool) -> str:
    """A difference, coloured by which side is better, with its standard error where that is known."""
    if difference is None:
        return MISSING
    value = difference.nats_per_token if in_nats else difference.bits_per_byte
    error = difference.nats_standard_error if in_nats else difference.bits_standard_error
    kind = "" if value is None or round(value, 3) == 0 else "better" if value < 0 else "worse"
    return fill("<span class='{}'>{}</span>{}", kind, format_nats(value, signed=True), format_error(error))
