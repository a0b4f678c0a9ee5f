"""The experiment on the effect: its rules by worked cases, gains by seed, and that a row is there only for what was done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zstandard

from benchmarks.effect import Experiment, main, read_rows, run_arms
from benchmarks.effect_arms import ARMS, Arm, ScoresOf
from benchmarks.effect_costs import Flops, count_student, match_steps
from benchmarks.effect_rules import (
    Candidates,
    classify,
    find_repeated_shares,
    is_repeated,
    keep_among,
    rank_within_domains,
    read_kept,
    read_labelled,
    select_by,
    share_between,
    train_classifier,
)
from benchmarks.effect_scores import Scoring
from benchmarks.effect_tables import (
    estimate,
    find_gain,
    find_gains,
    find_saving,
    rows_of,
)
from miniplm.config.files import load_config
from miniplm.config.run import RunConfig, StudentConfig, config_as_dict
from miniplm.errors import ProxyError, SourceError, TrainingError
from miniplm.storage.root import Storage
from tests.forks import FORKS
from tests.miniplm.made_corpora import make_corpus

RANDOM, BEST = ARMS[0], ARMS[1]


def make_row(arm: str, seed: int, losses: list[float], **facts: Any) -> dict[str, Any]:
    kept = {"kinds": {"clean": [60, 80], "ocr": [0, 40]}, "domains": {"prose": [45, 90], "code": [15, 30]}}
    row = {
        "arm": arm,
        "seed": seed,
        "num_parameters": 100,
        "num_tokens": 400,
        "epochs": 2.0,
        "heldout": losses[-1],
        "domains": {"prose": losses[-1], "code": losses[-1] + 1},
        "curve": [[100 * 2**index, loss] for index, loss in enumerate(losses)],
        "kept": kept,
    }
    return row | facts


SCORES = {
    "scores": "configured",
    "num_candidates": 10,
    "num_clean": 6,
    "num_candidate_tokens": 120,
    "between_domains": 0.1,
    "between_kinds": 0.6,
    "between_domains_of_clean": 0.5,
    "teacher_nll_of_clean": 3.0,
    "reference_nll_of_clean": 6.0,
    "teacher_parameters": 1000,
    "reference_parameters": 50,
    "reference_tokens": 70,
}


def test_an_estimate_is_the_mean_and_its_standard_error() -> None:
    # deviations -1, 0, 1: variance 2 / 2 = 1, error 1 / sqrt(3)
    found = estimate([4.0, 5.0, 6.0])
    assert (found.mean, found.num, found.error) == (5.0, 3, pytest.approx(3**-0.5))
    assert found.show() == "5.000 ± 0.577"
    assert estimate([4.0]).show(signed=True) == "+4.000"


def test_gains_are_of_the_same_seed_and_a_seed_without_a_pair_is_left_out() -> None:
    rows = [make_row("random", seed, [7.0, 6.0 + 2 * seed]) for seed in (0, 1)]
    rows += [make_row("corpus", seed, [6.5, loss]) for seed, loss in ((0, 5.9), (1, 7.7), (2, 1.0))]
    gain = find_gain(rows, BEST, lambda row: row["heldout"])
    # 0.1 and 0.3
    assert gain is not None
    assert (gain.mean, gain.error, gain.num) == (pytest.approx(0.2), pytest.approx(0.1), 2)
    assert [(place, found.mean) for place, found in find_gains(rows, BEST)] == [(1.0, 0.5), (2.0, pytest.approx(0.2))]
    assert find_gain(rows, RANDOM, lambda row: row["heldout"]) == estimate([0.0, 0.0])
    assert find_gain(rows, Arm("none", "", "", baseline="nothing"), lambda row: row["heldout"]) is None


def test_the_saving_is_where_the_curve_crosses_the_last_loss_of_the_baseline() -> None:
    rows = [make_row("random", 0, [8.0, 7.5, 7.0]), make_row("corpus", 0, [7.5, 6.5, 6.0])]
    # halfway between 100 and 200 tokens by the logarithm: 400 / 141.4
    assert find_saving(rows, BEST) == pytest.approx(2 * 2**0.5)
    assert find_saving([rows[0], make_row("corpus", 0, [9.0, 8.5, 8.0])], BEST) is None


def test_of_two_rows_of_a_seed_the_later_counts() -> None:
    rows = [make_row("corpus", 0, [7.0]), make_row("corpus", 0, [6.0])]
    assert [row["heldout"] for row in rows_of(rows, "corpus")] == [6.0]


def test_tables_and_plot_are_made_of_the_rows_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [SCORES, *(make_row(arm, seed, [7.0, 6.0 - 0.1 * seed]) for arm in ("random", "corpus") for seed in (0, 1))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--tables", "--rows", str(tmp_path / "rows.jsonl"), "--plot", str(tmp_path / "plot.svg")]) == 0
    printed = capsys.readouterr().out
    assert "+0.000 ± 0.000" in printed
    # 2 * 1000 * 120 and 50 * (6 * 70 + 2 * 120), 6 * 100 * 400, and their sum
    assert all(number in printed for number in ("2.40e+05", "3.30e+04", "2.40e+05", "5.13e+05", "75%"))
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_an_arm_that_the_gate_refuses_is_left_out_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []

    class Refused:
        config = load_config("deployments/configs/effect.yaml")
        corpus = SimpleNamespace(corpus_id="one")

        def describe_scores(self, of: ScoresOf) -> dict[str, Any]:
            told.append(of.name)
            raise ProxyError("no better than chance")

        def run(self, arm: Arm, seed: int) -> dict[str, Any]:
            return make_row(arm.name, seed, [7.0]) | {"seconds": 1.0}

    rows = tmp_path / "rows.jsonl"
    for _ in range(2):
        run_arms(Refused(), ["random", "proxy-0.05"], [0], rows)  # type: ignore[arg-type]
    assert told == ["linear proxy of 5%"]  # the second time its row says so
    assert main(["--tables", "--rows", str(rows)]) == 0
    assert "Left out: proxy-0.05. no better than chance" in capsys.readouterr().out


def test_all_costs_of_an_arm_are_counted() -> None:
    arms = {arm.name: arm for arm in ARMS}
    # A student of 100 parameters on 400 tokens: 6 * 100 * 400 = 240,000.
    row = make_row("x", 0, [7.0], teacher_parameters=1000)
    assert count_student(arms["random"], row, None) == Flops(training=240_000)
    # 2 * 1000 * 120 and 50 * (6 * 70 + 2 * 120) more for the scores; of perplexity the teacher's alone.
    assert count_student(arms["domain"], row, SCORES) == Flops(240_000, 33_000, 0, 240_000)
    assert count_student(arms["perplexity"], row, SCORES) == Flops(240_000, 0, 0, 240_000)
    # Through a proxy the teacher scores 6 tokens; tuned it is as small as the reference, and is trained on 10.
    proxy = SCORES | {"teacher_tokens": 6, "proxy_flops": 480.0}
    assert count_student(arms["proxy-0.05"], row, proxy) == Flops(12_000, 33_000, 480, 240_000)
    tuned = SCORES | {"teacher_parameters": 50, "tuning_tokens": 10}
    assert count_student(arms["tuned"], row, tuned).teacher == 50 * (2 * 120 + 6 * 10)
    # Along, the teacher reads each token of training; before it, what it writes on.
    assert count_student(arms["vanilla-kd"], row | {"tokens_along": 400}, None).teacher == 800_000
    assert count_student(arms["seqkd"], row | {"tokens_written": 30}, None).teacher == 60_000


def test_matched_arms_have_the_steps_that_the_scores_pay_for() -> None:
    scores = Flops(teacher=500_000, reference=100_000)
    # 10 steps of 8 tokens: 48,000 more; by 4,800 a step 135, by 4,800 + 16,000 with a teacher along 31.
    assert match_steps(10, 8, 100, scores) == 135
    assert match_steps(10, 8, 100, scores, num_along_parameters=1000) == 31
    assert match_steps(10, 8, 100, scores, written=600_000.0) == 10
    assert match_steps(10, 8, 100, scores, written=1e9) == 1


def test_students_of_matched_arms_are_compared_at_the_end_alone() -> None:
    matched = Arm("matched", "", "random", budget="all")
    rows = [make_row("random", 0, [7.0, 6.0]), make_row("matched", 0, [6.9, 6.5, 5.0], num_tokens=900)]
    assert find_gains(rows, matched) == [(9.0, estimate([1.0]))]
    assert find_saving(rows, matched) is None


def test_methods_with_a_teacher_along_have_the_vocabulary_of_the_corpus(tmp_path: Path) -> None:
    experiment = Experiment(load_config("deployments/configs/effect.yaml", [f"storage={tmp_path}"]), "none")
    for arm in ARMS:
        changed = experiment.change_student(experiment.config.students[0], arm, 3)
        # As the configuration checks it: prompts fit a sequence, and a teacher along needs its own tokens.
        StudentConfig.model_validate(config_as_dict(changed))
        assert changed.generation.prompt_tokens == 192
        assert (changed.method, changed.training.seed) == (arm.method, 3)


def test_the_target_of_a_tuned_teacher_is_the_clean_part_of_the_labelled(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "meta": {"domain": "a", "kind": kind}}) for text, kind in (("one", "clean"), ("two", "ocr"))]
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines).encode()))
    config = load_config("deployments/configs/effect.yaml")
    scoring = Scoring(Storage(str(tmp_path / "data")), config, SimpleNamespace(), str(tmp_path))  # type: ignore[arg-type]
    tuned = scoring.configure(ScoresOf(tuned=True))
    RunConfig.model_validate(config_as_dict(tuned))
    assert tuned.teacher.tuned_on is not None
    assert Path(tuned.teacher.tuned_on.sources[0].path).read_text() == lines[0] + "\n"
    RunConfig.model_validate(config_as_dict(scoring.configure(ScoresOf(proxy_share=0.05))))


def test_without_rows_the_tables_say_how_to_make_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tables", "--rows", str(tmp_path / "none.jsonl")]) == 2
    assert "has no row; leave --tables out" in capsys.readouterr().err


def test_an_arm_of_a_seed_that_has_a_row_is_not_done_again(tmp_path: Path) -> None:
    done: list[tuple[str, int]] = []

    class Counted:
        config = load_config("deployments/configs/effect.yaml")

        def describe_scores(self, of: ScoresOf) -> dict[str, Any]:
            return SCORES

        def run(self, arm: Arm, seed: int) -> dict[str, Any]:
            done.append((arm.name, seed))
            return make_row(arm.name, seed, [7.0]) | {"seconds": 1.0}

    for names, seeds in ((["random"], [0]), (["random", "corpus"], [0, 1]), (["corpus"], [1])):
        run_arms(Counted(), names, seeds, tmp_path / "rows.jsonl")  # type: ignore[arg-type]
    assert done == [("random", 0), ("random", 1), ("corpus", 0), ("corpus", 1)]
    rows = read_rows(tmp_path / "rows.jsonl")
    # What the scores are made of stands there once, before the arms that go by them.
    assert [row.get("scores", row.get("arm")) for row in rows] == ["random", "configured", "random", "corpus", "corpus"]


def test_a_row_of_another_corpus_is_not_taken_for_this_one(tmp_path: Path) -> None:
    done: list[str] = []

    class OfCorpus:
        config = load_config("deployments/configs/effect.yaml")

        def __init__(self, corpus_id: str) -> None:
            self.corpus = SimpleNamespace(corpus_id=corpus_id)

        def run(self, arm: Arm, seed: int) -> dict[str, Any]:
            done.append(self.corpus.corpus_id)
            return make_row(arm.name, seed, [7.0], corpus_id=self.corpus.corpus_id) | {"seconds": 1.0}

    for corpus_id in ("one", "one", "other"):
        run_arms(OfCorpus(corpus_id), ["random"], [0], tmp_path / "rows.jsonl")  # type: ignore[arg-type]
    assert done == ["one", "other"]


class FailingExperiment:
    """Students whose seed is 1 fail."""

    config = load_config("deployments/configs/effect.yaml")

    def provide_text(self, arm: Arm, seed: int) -> None:
        pass

    def run(self, arm: Arm, seed: int) -> dict[str, Any]:
        if seed == 1:
            raise TrainingError("memory ran out")
        return make_row(arm.name, seed, [7.0]) | {"seconds": 1.0}


def run_failing(rows: str, seeds: list[int], told: str) -> None:
    """In a process of its own, as one that pytest is at work in has threads, with which no fork is sure to live."""
    with open(told, "wb") as file:
        os.dup2(file.fileno(), 2)
    run_arms(FailingExperiment(), ["random"], seeds, Path(rows), 2)  # type: ignore[arg-type]


def test_side_by_side_one_that_fails_ends_it_and_the_others_have_their_rows(tmp_path: Path) -> None:
    def run(*seeds: int) -> tuple[int | None, str, list[int]]:
        process = FORKS.Process(target=run_failing, args=(str(tmp_path / "rows.jsonl"), list(seeds), str(tmp_path / "told")))
        process.start()
        process.join()
        return process.exitcode, (tmp_path / "told").read_text(), [row["seed"] for row in read_rows(tmp_path / "rows.jsonl")]

    code, told, seeds = run(*range(20))
    assert code == 1
    assert "memory ran out" in told
    assert "goes on with those that have no row" in told
    assert 0 in seeds
    assert 1 not in seeds
    assert len(seeds) < 19
    code, told, seeds = run(0, 2, 3)
    assert code == 0, told
    assert {0, 2, 3} <= set(seeds)
    assert len(seeds) == len(set(seeds))


def test_places_within_a_domain_are_of_those_that_are_looked_at() -> None:
    domain = np.array(["a", "a", "b", "a", "b"])
    among = np.array([True, True, True, False, True])
    found = rank_within_domains(np.array([1.0, 2.0, 5.0, 9.0, 6.0]), domain, among)
    assert found.tolist() == [0.25, 0.75, 0.25, -1e6, 0.75]
    assert keep_among(np.array([1.0, 2.0]), np.array([False, True])).tolist() == [-1e6, 2.0]


def test_the_share_between_groups_is_one_where_they_tell_all() -> None:
    group = np.array(["a", "a", "b", "b"])
    assert share_between(np.array([1.0, 1.0, 3.0, 3.0]), group) == 1.0
    assert share_between(np.array([1.0, 3.0, 1.0, 3.0]), group) == 0.0
    # total 10 + 10, between 4 * 2^2 = 16, of 20
    assert share_between(np.array([1.0, 3.0, 5.0, 7.0]), group) == pytest.approx(0.8)


def test_text_is_repeated_where_an_earlier_one_has_its_shingles() -> None:
    words = [f"w{index}" for index in range(20)]
    shares = find_repeated_shares([" ".join(words), " ".join(words[12:] + ["x"] * 10), " ".join(words[4:]), "short"])
    # The second has 11 shingles, three of them the same, and one that is in the first; the third is all of the first.
    assert shares.tolist() == [0.0, pytest.approx(1 / 9), 1.0, 0.0]
    assert is_repeated(shares).tolist() == [False, False, True, False]


def test_the_classifier_tells_text_like_its_labels_apart(tmp_path: Path) -> None:
    clean = ["the people of this country have work to do and they do it", "we have seen that the work of the people is done"]
    dirt = ["aGVsbG8gd29ybGQ= x9fK2mQz7RtY", "Zm9vYmFyIHF1dXg= pQ8sLw3nVb6c"]
    lines = [{"text": text, "meta": {"kind": kind}} for texts, kind in ((clean, "clean"), (dirt, "encoded")) for text in texts]
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    texts, labels = read_labelled(str(tmp_path))
    assert (texts, labels) == ([*clean, *dirt], [True, True, False, False])
    logits = classify(train_classifier(texts, labels), ["the work of this country", "bG9yZW0gaXBzdW0= k7Tz"])
    assert logits[0] > 0 > logits[1]
    with pytest.raises(SourceError, match=r"has no .* with labelled documents"):
        read_labelled(str(tmp_path / "none"))


def test_a_rule_is_selected_as_the_product_selects(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    corpus = make_corpus(storage, {"reference": [[[1, 2]]], "candidate": [[[1] * 5] * 4, [[1] * 5] * 3]})
    counts, names = np.full(7, 4), np.array(["a"] * 7)
    candidates = Candidates(names, names, counts)
    selection = select_by(storage, corpus, candidates, np.array([0.5, -1.0, 3.0, 0.5, 2.0, -7.0, 0.5]), 4)
    # Ties of 0.5 go to the smaller ids.
    assert read_kept(storage, corpus, selection).tolist() == [True, False, True, True, True, False, False]
    assert (selection.num_selected, selection.num_candidates) == (4, 7)
    assert select_by(storage, corpus, candidates, np.array([0.5, -1.0, 3.0, 0.5, 2.0, -7.0, 0.5]), 4) == selection


def test_arms_have_names_of_their_own_and_baselines_that_come_before_them() -> None:
    names = [arm.name for arm in ARMS]
    assert len(set(names)) == len(names)
    assert all(names.index(arm.baseline) <= names.index(arm.name) for arm in ARMS)


def test_scores_are_called_in_rows_what_they_were_called_before_references_had_sizes() -> None:
    names = {arm.name: arm.scores.name for arm in ARMS}
    assert [names[name] for name in ("corpus", "reference-0.25", "reference-4")] == [
        "configured",
        "reference of 0.25 epochs",
        "reference of 4 epochs",
    ]
    assert names["reference-small"] == "reference qwen-0.3m"
    assert (names["proxy-0.05"], names["proxy-head-0.2"], names["tuned"]) == (
        "linear proxy of 5%",
        "head proxy of 20%",
        "tuned teacher",
    )


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--tables" in capsys.readouterr().out
