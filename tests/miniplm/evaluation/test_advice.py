"""What is advised where a selection was not worth it: each sentence by the numbers that speak for it, none without them."""

from __future__ import annotations

from typing import Any

from miniplm.evaluation.advice import advise
from miniplm.evaluation.comparison import LossDifference, StudentComparison
from miniplm.records.manifests import ModelEntry
from miniplm.records.run import RunRecord, StageRecord
from miniplm.records.selections import DomainSelection, SelectionManifest
from miniplm.records.truth import RatioRow, TruthSummary
from tests.miniplm.made_corpora import describe_selection


def make_domain(kept: int, teacher: float = 3.0, reference: float = 6.5) -> DomainSelection:
    return DomainSelection(
        num_candidates=10,
        num_selected=kept // 10,
        num_candidate_tokens=100,
        num_selected_tokens=kept,
        mean_teacher_nll=teacher,
        mean_reference_nll=reference,
        difference_score_quantiles=(),
    )


def make_selection(**changes: Any) -> SelectionManifest:
    domains = {"drama": make_domain(20), "python": make_domain(80)}
    return describe_selection(
        "s", "c", **{"num_negative": 1, "num_selected": 10, "num_selected_tokens": 100, "domains": domains, **changes}
    )


def compare(bits: float, **domains: float) -> StudentComparison:
    def make(value: float) -> LossDifference:
        return LossDifference(
            nats_per_token=value, nats_standard_error=None, bits_per_byte=value, bits_standard_error=None, paired=True
        )

    return StudentComparison(baseline="base", overall=make(bits), domains={name: make(value) for name, value in domains.items()})


def make_record(trained_tokens: int = 500) -> RunRecord:
    reference = ModelEntry(model_id="r", source="x", dtype="float32", weights_digest="w", num_parameters=1000)
    stage = StageRecord(name="train reference", seconds=1.0, reused=False, num_units=trained_tokens, unit="tokens")
    return RunRecord(run_name="r", config={}, reference=reference, stages=(stage,), started_at="")


def test_a_better_student_or_none_to_compare_with_needs_no_advice() -> None:
    assert advise(make_record(), make_selection(), compare(-0.1)) == []
    assert advise(make_record(), make_selection(), StudentComparison()) == []
    assert advise(make_record(), None, compare(0.1)) == []


def test_rule_ratio_and_reference_are_advised_with_their_numbers() -> None:
    rule, ratio, reference = advise(make_record(), make_selection(), compare(0.1, drama=0.3, python=-0.2))
    assert rule.startswith(
        "selection.within=domain keeps the mix of domains: here 80% of python were kept and 20% of drama; the student is worse in"
    )
    assert "(drama +0.300 bits a byte)" in rule
    assert "here 50% of the candidates went, where the teacher does worse than the reference on 5%" in ratio
    assert "trained on 0.5 tokens a parameter and is 3.5 nats a token above the teacher" in reference


def test_a_teacher_tuned_from_the_reference_is_not_said_to_know_more_than_it() -> None:
    record = make_record()
    tuned = StageRecord(name="tune teacher", seconds=1.0, reused=False, num_units=50, unit="tokens")
    told = advise(record.model_copy(update={"stages": (*record.stages, tuned)}), make_selection(), compare(0.1))
    assert "above the teacher" not in told[-1]
    assert "0.5 tokens a parameter, and the teacher, which was tuned from it" in told[-1]


def test_nothing_is_advised_that_is_so_already() -> None:
    selection = make_selection(within="domain", ratio=0.95)
    assert advise(make_record(trained_tokens=20_000), selection, compare(0.1)) == []
    even = make_selection(domains={"drama": make_domain(50), "python": make_domain(60)}, ratio=0.95)
    assert advise(make_record(trained_tokens=20_000), even, compare(0.1)) == []


def test_a_teacher_that_is_worse_than_the_reference_is_what_is_to_be_changed() -> None:
    selection = make_selection(domains={"drama": make_domain(50, teacher=7.4, reference=5.6)})
    told = advise(make_record(), selection, compare(0.1))
    assert told[-1].startswith(
        "a teacher that knows such text: this one finds it less likely than the reference does, by 1.8 nats a token"
    )
    assert not any("above the teacher" in sentence for sentence in told)


def test_the_field_that_says_how_much_is_kept_is_the_one_that_is_advised() -> None:
    for rule, field in (({"tokens": 100}, "larger selection.tokens"), ({"threshold": 0.2}, "lower selection.threshold")):
        _, ratio, _ = advise(make_record(), make_selection(ratio=None, rule=rule), compare(0.1))
        assert ratio.startswith(f"a {field} throws less away")


def test_a_score_that_labels_show_to_be_no_guide_is_not_mended_by_a_ratio() -> None:
    rows = tuple(RatioRow(ratio=ratio, precision=0.59, recall=ratio) for ratio in (0.5, 0.9, 1.0))
    facts: dict[str, Any] = {
        "field": "kind",
        "clean": ("clean",),
        "records": {},
        "gone_files": (),
        "kinds": (),
        "ratio": 0.5,
        "ratios": rows,
    }
    told = advise(
        make_record(), make_selection(), compare(0.1), TruthSummary(clean_share=0.59, precision=0.58, recall=0.48, **facts)
    )
    assert "58% of what was kept is clean, of random text 59% would be" in told[1]
    # Everything is random text.
    told = advise(make_record(), make_selection(), compare(0.1), TruthSummary(clean_share=0.5, precision=0.6, recall=0.5, **facts))
    assert told[1].startswith("selection.ratio=0.9 would keep 90%")
    # No labelled text is dirt, so it is not told that the score takes dirt for clean text.
    told = advise(make_record(), make_selection(), compare(0.1), TruthSummary(clean_share=1.0, precision=1.0, recall=0.5, **facts))
    assert told[1].startswith("a larger selection.ratio throws less away")


def test_labels_tell_the_ratio_that_keeps_more_clean_text_at_the_same_precision() -> None:
    truth = TruthSummary(
        field="kind",
        clean=("clean",),
        records={},
        gone_files=(),
        kinds=(),
        clean_share=0.5,
        precision=0.7,
        recall=0.6,
        ratio=0.5,
        ratios=tuple(
            RatioRow(ratio=ratio, precision=p, recall=r) for ratio, p, r in ((0.5, 0.7, 0.6), (0.7, 0.69, 0.9), (0.9, 0.6, 1.0))
        ),
    )
    _, ratio, _ = advise(make_record(), make_selection(), compare(0.1), truth)
    assert ratio == (
        "selection.ratio=0.7 would keep 90% of the clean text instead of 60%, with precision 69% instead of 70%. It costs no new scores"
    )
