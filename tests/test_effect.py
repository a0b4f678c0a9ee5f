"""The tables of the effect experiment: means, standard errors, pairs by seed, and what is shown where nothing was run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.effect import (
    EXPECTED,
    NOT_RUN,
    StudentRow,
    compare,
    estimate,
    find_main_selection,
    group_by_label,
    main,
    make_measures,
    read_students,
    summarise,
    tabulate_losses,
)
from benchmarks.effect_scores import (
    describe_scores,
    keep_best,
    read_scores,
    share_between_domains,
    tabulate_domains,
)
from benchmarks.effect_scores import main as describe_command
from miniplm import layout
from miniplm.config.run import SelectionConfig
from miniplm.errors import RunError
from miniplm.records.manifests import CorpusManifest, DomainLoss, Evaluation, TrainingManifest
from miniplm.selection.ranking import select_sequences
from miniplm.storage.root import Storage
from tests.miniplm.made_corpora import make_corpus, write_scores


def make_row(method: str, seed: int, prose: float, code: float, selection: str | None = None) -> StudentRow:
    return StudentRow(
        run=f"effect-{seed}",
        student=method,
        method=method,
        seed=seed,
        training_id=f"{method}-{seed}",
        selection_id=selection,
        num_parameters=12_000_000,
        num_steps=10,
        num_tokens=1_000,
        learning_rate=1e-3,
        seconds=1.0,
        final_loss=7.0,
        heldout=(3 * prose + code) / 4,
        macro=(prose + code) / 2,
        domains={"prose": prose, "code": code},
        device="cpu",
    )


def test_an_estimate_is_the_mean_and_its_standard_error() -> None:
    # deviations -1, 0, 1: variance 2 / 2 = 1, error 1 / sqrt(3)
    found = estimate([4.0, 5.0, 6.0])
    assert (found.mean, found.num) == (5.0, 3)
    assert found.error == pytest.approx(3**-0.5)
    assert found.show() == "5.000 ± 0.577"
    assert estimate([4.0]).show(signed=True) == "+4.000"


def test_students_are_compared_by_seed_and_seeds_without_a_pair_are_left_out() -> None:
    baseline = [make_row("pretrain", 0, 6.0, 5.0), make_row("pretrain", 1, 8.0, 5.0)]
    rows = [make_row("miniplm", 0, 5.9, 5.0), make_row("miniplm", 1, 7.9, 5.0), make_row("miniplm", 2, 1.0, 1.0)]
    found = compare(rows, baseline, lambda row: row.domains["prose"])
    assert found is not None
    assert (found.mean, found.error, found.num) == (pytest.approx(-0.1), pytest.approx(0.0, abs=1e-12), 2)
    assert compare([rows[2]], baseline, lambda row: row.heldout) is None


def test_a_method_that_was_not_run_is_said_so_and_has_no_number() -> None:
    rows = [make_row("pretrain", 0, 6.0, 5.0), make_row("miniplm", 0, 5.0, 5.5)]
    groups = group_by_label(rows, None)
    assert list(groups) == list(EXPECTED)
    table = tabulate_losses(groups, make_measures(rows, None), signed=True).splitlines()
    assert "miniplm (n=1)" in table[0]
    assert [line.split("|")[2].strip() for line in table[2:]] == ["-0.625", "-0.250", "+0.500", "-1.000"]
    assert all(line.count(NOT_RUN) == 3 for line in table[2:])
    assert summarise(groups, make_measures(rows, None))["seqkd"] == NOT_RUN


def test_students_of_another_selection_are_not_mixed_with_those_of_the_main_one() -> None:
    rows = [make_row("miniplm", 0, 6, 5, "mean-0.5-a"), make_row("miniplm", 0, 6, 5, "mean-0.3-b"), make_row("pretrain", 0, 6, 5)]
    groups = group_by_label(rows, "mean-0.5-a")
    assert {label: len(found) for label, found in groups.items() if found} == {
        "pretrain": 1,
        "miniplm": 1,
        "miniplm on mean-0.3-b": 1,
    }


def test_the_main_selection_is_that_of_the_first_run() -> None:
    first, other = make_row("miniplm", 0, 6, 5, "mean-0.5-a"), make_row("miniplm", 0, 6, 5, "mean-0.5-by-domain-b")
    assert find_main_selection([make_row("pretrain", 0, 6, 5), first, other, other]) == "mean-0.5-a"
    assert find_main_selection([make_row("pretrain", 0, 6, 5)]) is None


def write_student(storage: Storage, run: str, name: str, seed: int, loss: float) -> None:
    """What a trained and evaluated student leaves in its folder."""
    measured = DomainLoss(nats_per_token=loss, bits_per_byte=1.0, num_scored_tokens=10, num_sequences=1)
    evaluation = Evaluation(corpus_id="c-1", weights_digest="w", overall=measured, domains={"prose": measured}, seconds=1.0)
    training = TrainingManifest(
        training_id=f"{name}-{seed}",
        recipe={"method": name, "data": {}, "training": {"seed": seed, "learning_rate": 1e-3}},
        checkpoint="c",
        weights_digest="w",
        num_parameters=7,
        num_steps=2,
        num_tokens=100,
        num_sequences=4,
        final_loss=7.5,
        seconds=3.0,
        device="cpu",
        versions={},
    )
    storage.write_json(f"runs/{run}/students/{name}/training.json", training.as_json())
    storage.write_json(f"runs/{run}/students/{name}/evaluation.json", evaluation.as_json())


def test_the_command_reads_the_students_of_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = Storage(str(tmp_path / "root"))
    for seed in (0, 1):
        write_student(storage, f"effect-{seed}", "pretrain", seed, 7.0 + seed)
        write_student(storage, f"effect-{seed}", "miniplm", seed, 6.5 + 0.8 * seed)
    command = ["--storage", storage.root, "--runs", "effect-0", "effect-1"]
    assert main([*command, "--rows", str(tmp_path / "rows.jsonl"), "--plot", str(tmp_path / "plot.svg"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    # -0.5 and -0.7: mean -0.6, error 0.1
    assert facts["estimates"]["miniplm"]["prose"]["difference"] == {
        "mean": pytest.approx(-0.6),
        "error": pytest.approx(0.1),
        "num": 2,
    }
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [line["heldout"] for line in lines[:4]] == [6.5, 7.0, pytest.approx(7.3), 8.0]
    assert [line["method"] for line in lines if line.get("status") == NOT_RUN] == ["vanilla-kd", "seqkd", "miniplm+vanilla-kd"]
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    assert main(command) == 0
    assert "-0.600 ± 0.100" in capsys.readouterr().out


def test_a_run_without_students_is_refused_with_the_command_that_trains_them(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"no trained student of run 'effect-9'; train it with `miniplm run CONFIG --set name=effect-9`"
    ):
        read_students(Storage(str(tmp_path)), ["effect-9"])


def make_scores(domain: list[str], difference: list[float], num_tokens: list[int]) -> pa.Table:
    num = len(domain)
    columns = {"sequence_id": range(num), "domain": domain, "num_tokens": num_tokens, "teacher_nll": [3.0] * num}
    return pa.table(columns | {"reference_nll": [3 + value for value in difference], "difference": difference})


def test_the_best_are_kept_and_ties_go_to_the_earlier() -> None:
    assert keep_best(np.array([1.0, 3.0, 3.0, 2.0]), 0.5).tolist() == [False, True, True, False]
    assert keep_best(np.array([1.0, 1.0, 1.0]), 0.5).tolist() == [True, False, False]


def test_the_share_between_domains_is_one_where_domains_tell_all_and_zero_where_nothing() -> None:
    domain = np.array(["a", "a", "b", "b"], dtype=object)
    assert share_between_domains(np.array([1.0, 1.0, 3.0, 3.0]), domain) == 1.0
    assert share_between_domains(np.array([1.0, 3.0, 1.0, 3.0]), domain) == 0.0
    # total 10 + 10, between 4 * 2^2 = 16, of 20
    assert share_between_domains(np.array([1.0, 3.0, 5.0, 7.0]), domain) == pytest.approx(0.8)


def test_the_description_of_scores_counts_negatives_and_overlaps() -> None:
    facts = describe_scores(make_scores(["a", "a", "b", "b"], [9.0, -8.0, 1.0, 2.0], [10, 20, 30, 40]))
    assert (facts["num_candidates"], facts["num_negative"]) == (4, 1)
    assert facts["mean_length"] == {"kept": 25.0, "dropped": 25.0}
    # All teacher NLLs are equal: the first two are kept, of which row 0 is among the best.
    assert facts["overlap_at_half"] == {"teacher": 0.5}


def make_scored_corpus(storage: Storage) -> CorpusManifest:
    """Six candidates in two shards, of domains a and b in turn, with difference scores 1, 0, 2, 1, 1, -1."""
    sequences = [[1] * (3 + index) for index in range(6)]
    corpus = make_corpus(storage, {"candidate": [sequences[:4], sequences[4:]]})
    for shard, teacher, reference in zip(corpus.shards, ([4, 4, 4, 4], [4, 4]), ([6, 4, 8, 6], [6, 2]), strict=True):
        write_scores(storage, shard, "teacher", teacher, [2] * len(teacher))
        write_scores(storage, shard, "reference", reference, [2] * len(reference))
    return corpus


def test_the_scores_are_ranked_as_the_library_ranks_them(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage)
    scores = read_scores(storage, corpus, "teacher", "reference")
    selection = select_sequences(storage, corpus, "teacher", "reference", SelectionConfig(ratio=0.5))
    folder = tmp_path / layout.selection_shard(selection.selection_id, 0)
    wanted = [
        number for path in sorted(folder.parent.glob("*.parquet")) for number in pq.read_table(path)["sequence_id"].to_pylist()
    ]
    assert scores["sequence_id"].to_numpy()[keep_best(scores["difference"].to_numpy(), 0.5)].tolist() == wanted
    assert tabulate_domains(scores).splitlines()[2].split()[1:4:2] == ["a", "3"]


@pytest.mark.parametrize("command", [main, describe_command])
def test_help_teaches(command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command(["--help"])
    assert "--json" in capsys.readouterr().out
