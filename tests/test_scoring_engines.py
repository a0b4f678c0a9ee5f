"""Engines side by side: the same targets of the same sequences, and what did not run is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.engine_sides import NotRunError, _read_vllm, main, measure_side
from benchmarks.records import format_rows
from benchmarks.scoring_engines import make_row, run_side
from benchmarks.scoring_inputs import make_word_tokenizer
from tests.miniplm.made_models import make_llama, save_model

SEQUENCE = np.array([5, 7, 7, 9])


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> dict:
    model = make_llama()
    folder = save_model(model, tmp_path_factory.mktemp("engines") / "model")
    make_word_tokenizer(model.config.vocab_size).save_pretrained(str(folder))
    common = {"dtype": "float32", "device": "cpu", "repeats": 2, "first": 1, "lm_eval_batch": 2}
    return {"model": str(folder), "longest": 12, "vocab_size": model.config.vocab_size, **common}


def make_sequences(vocab_size: int) -> list[np.ndarray]:
    """Of several lengths, with a separator (0) in them and one that occurs twice."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, vocab_size, length) for length in (12, 7, 2, 12)]
    rows[0][3] = 0
    return [*rows, rows[1]]


@pytest.mark.parametrize("side", ["ours", "lm-eval"])
def test_an_engine_scores_every_target_of_each_sequence_as_float64_does(request_: dict, side: str) -> None:
    if side == "lm-eval":
        pytest.importorskip("lm_eval")
    sequences = make_sequences(request_["vocab_size"])
    told, sums = measure_side(side, request_, sequences)
    _, exact = measure_side("reference", request_ | {"repeats": 1, "first": 0}, sequences)
    targets = np.array([len(row) - 1 for row in sequences])
    assert sums / targets == pytest.approx(exact / targets, abs=1e-5)
    assert len(told["seconds"]) == 2
    assert told["load_seconds"] > 0


def test_an_engine_that_is_not_installed_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.engine_sides.find_spec", lambda package: None)
    with pytest.raises(NotRunError, match=f"vllm is not installed for {sys.executable}"):
        measure_side("vllm", {}, [])


@pytest.mark.parametrize("flat", [True, False])
def test_both_forms_of_vllms_prompt_logprobs_give_the_log_probability_of_each_target(flat: bool) -> None:
    # Nothing is known of the first token; of the third position vLLM tells the likeliest token too.
    listed = [None, {7: -1.0}, {7: -2.5, 3: -0.1}, {9: -4.0}]
    if flat:
        places = [0, 0, 1, 3]
        told = SimpleNamespace(start_indices=places, token_ids=[7, 7, 3, 9], logprobs=[-1.0, -2.5, -0.1, -4.0])
    else:
        told = [position and {token: SimpleNamespace(logprob=value) for token, value in position.items()} for position in listed]
    assert _read_vllm(told, SEQUENCE) == [-1.0, -2.5, -4.0]


def test_targets_that_an_engine_left_out_are_noticed() -> None:
    with pytest.raises(ValueError, match=r"the engine scored \[2\] targets of sequences that have \[3\]"):
        _read_vllm([None, {7: SimpleNamespace(logprob=-1.0)}, {7: SimpleNamespace(logprob=-1.0)}], SEQUENCE)


# --- each in a process of its own ---


def write_interpreter(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sleep 60 & sleep 60", "stopped at its limit of 0.5 s"),
        (
            "echo 'torch.OutOfMemoryError: no memory left' >&2; echo bye >&2; exit 7",
            "failed, exit code 7: torch.OutOfMemoryError: no memory left",
        ),
        ("kill -9 $$", "failed, exit code -9: it said nothing"),
        ("exit 0", "failed, exit code 0: it said nothing"),
    ],
)
def test_a_side_that_hangs_or_fails_is_told_and_costs_its_own_time(tmp_path: Path, script: str, reason: str) -> None:
    assert run_side("vllm", tmp_path, write_interpreter(tmp_path, script), 0.5, on_gpu=False) == {"reason": reason}


def test_a_side_leaves_its_sums_and_what_it_tells_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "request.json").write_text(json.dumps({"first": 1, "repeats": 2, "checked": [0, 2]}))
    np.savez(tmp_path / "sequences.npz", token_ids=np.array([1, 2, 3, 4, 5, 6, 7]), lengths=np.array([3, 2, 2]))
    seen: list[list[list[int]]] = []

    def score(sequences: list[np.ndarray]) -> list[float]:
        seen.append([row.tolist() for row in sequences])
        return [float(row[0]) for row in sequences]

    monkeypatch.setattr("benchmarks.engine_sides._end_with_parent", lambda: None)
    for name in ("ours", "reference"):
        monkeypatch.setitem(sys.modules["benchmarks.engine_sides"].SIDES, name, ("json", lambda request: (score, {"batch": 8})))
        main(name, tmp_path)
    rows = [[1, 2, 3], [4, 5], [6, 7]]
    assert seen == [rows[:1], rows, rows, [], [rows[0], rows[2]]]
    assert np.load(tmp_path / "ours.npy").tolist() == [1, 4, 6]
    assert np.load(tmp_path / "reference.npy").tolist() == [1, 6]
    assert json.loads((tmp_path / "ours.json").read_text())["engine"] == {"batch": 8}


# --- rows ---


def test_a_row_is_the_best_run_against_ours_and_its_distance_from_float64(tmp_path: Path) -> None:
    np.save(tmp_path / "vllm.npy", np.array([2.0, 4.0, 10.0]))
    lengths, exact = np.array([3, 3, 6]), np.array([2.0, 10.5])  # of the first and the last
    told = {"seconds": [3.0, 2.0], "load_seconds": 40.0, "first_batch_seconds": 2.0}
    request = {"dtype": "bfloat16", "checked": [0, 2]}
    row = make_row("vllm", told, request, lengths, exact, {"tokens_per_second": 24.0}, tmp_path)
    assert (row["tokens_per_second"], row["ratio_to_ours"], row["start_up_seconds"]) == (6.0, 0.25, 42.0)
    assert row["mean_nll"] == pytest.approx((1 + 2 + 2) / 3)
    assert (row["max_abs_difference"], row["mean_abs_difference"]) == pytest.approx((0.1, 0.05))
    assert make_row("vllm", told, request, lengths, None, {"reason": "failed"}, tmp_path)["ratio_to_ours"] is None


def test_what_did_not_run_is_in_the_table_and_in_the_row(tmp_path: Path) -> None:
    request = {"dtype": "float32", "checked": []}
    reasons = ("not run: vllm is not installed for python", "stopped at its limit of 9 s")
    rows = [make_row("vllm", {"reason": reason}, request, np.array([2]), None, None, tmp_path) for reason in reasons]
    assert [row["reason"] for row in rows] == list(reasons)
    told = format_rows(rows, "side", "tokens/s").splitlines()
    assert told[2:4] == ["| vllm |      n/a |"] * 2
    assert told[4:] == [f"vllm: {reason}" for reason in reasons]
