"""What may be compared between the runs of a sweep: losses in one unit, and of one text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miniplm.records.manifests import DomainLoss, Evaluation
from miniplm.records.run import RunRecord, StudentRecord, save_run
from miniplm.records.sweep import SweepRecord, SweptRunRecord, save_sweep
from miniplm.report.sweep import write_sweep_page
from miniplm.run.sweep import SweptResult, compare_sweep_in_nats, describe_sweep, has_several_texts, read_loss
from miniplm.storage.root import Storage

NATS, BITS = 4.25, 1.125


def make_sweep(*configs: Mapping[str, Any], started_at: str = "2026-11-28T10:00:00+00:00") -> tuple[list[SweptResult], str]:
    """The results of a sweep with a run of each configuration and one evaluated student in each, and its page."""
    storage = Storage("memory://sweep")
    loss = DomainLoss(nats_per_token=NATS, bits_per_byte=BITS, num_scored_tokens=10, num_sequences=2, nats_standard_error=0.5)
    evaluation = Evaluation(corpus_id="c", weights_digest="w", overall=loss, domains={}, seconds=1.0)
    student = StudentRecord(
        training_id="t",
        method="miniplm",
        architecture="a",
        num_parameters=1,
        num_steps=1,
        num_tokens=1,
        final_loss=1.0,
        folder="f",
        evaluation=evaluation,
    )
    runs = [SweptRunRecord(run_name=f"run-{number}", values={"field": str(number)}) for number in range(len(configs))]
    for run, config in zip(runs, configs, strict=True):
        save_run(
            storage,
            RunRecord(
                run_name=run.run_name, config=dict(config), started_at="2026-11-28T10:00:00+00:00", students={"one": student}
            ),
        )
    sweep = SweepRecord(name="swept", runs=tuple(runs), started_at=started_at)
    save_sweep(storage, sweep)
    write_sweep_page(storage, "swept")
    return describe_sweep(storage, sweep), storage.read_bytes("runs/swept/sweep.html").decode()


def make_config(tokenizer: str = "a", own: str | None = None, **evaluation: Any) -> dict[str, Any]:
    return {
        "corpus": {"tokenizer": tokenizer, "sources": ["s"], "seed": 0},
        "evaluation": evaluation,
        "students": [{"name": "one", "tokenizer": own}],
    }


def test_runs_of_one_tokenizer_and_one_text_compare_in_nats_a_token() -> None:
    results, page = make_sweep(make_config("a"), make_config("b", own="a"))
    assert compare_sweep_in_nats(results)
    assert not has_several_texts(results)
    assert read_loss(results[0].students[0].loss, in_nats=True) == (NATS, 0.5)  # type: ignore[arg-type]
    assert "<small>nats a token</small>" in page
    assert "4.250" in page


def test_runs_of_several_tokenizers_compare_in_bits_a_byte() -> None:
    text = ["elsewhere"]
    results, page = make_sweep(make_config("a", sources=text), make_config("a", own="b", sources=text))
    assert not compare_sweep_in_nats(results)
    assert not has_several_texts(results)
    assert "<small>bits a byte</small>" in page
    assert "1.125" in page
    assert "4.250" not in page
    assert "different held-out texts" not in page


def test_runs_that_are_measured_on_different_texts_say_so() -> None:
    results, page = make_sweep(make_config(), make_config(sources=["elsewhere"]))
    assert has_several_texts(results)
    assert "different held-out texts" in page


def test_a_run_of_an_earlier_sweep_of_the_name_has_no_results_yet() -> None:
    results, page = make_sweep(make_config(), started_at="2026-11-28T10:00:01+00:00")
    assert [(result.is_finished, result.students) for result in results] == [(False, ())]
    assert "4.250" not in page
