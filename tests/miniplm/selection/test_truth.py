"""A selection held against labels: kinds, precision and recall by hand, and other ratios as the rule itself would keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniplm import layout
from miniplm.config.run import SelectionConfig
from miniplm.corpus.truth import resolve_truth_id
from miniplm.errors import CorpusError
from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import SelectionManifest
from miniplm.records.truth import TruthManifest, TruthSummary
from miniplm.selection.connection import connect
from miniplm.selection.join import candidate_scores
from miniplm.selection.ranking import select_sequences
from miniplm.selection.truth import summarise_truth
from miniplm.storage.root import Storage, digest_file
from tests.miniplm.selection.test_selection import REFERENCE, TEACHER, make_scored_corpus

# Six candidates of 3, 4, 5, 6, 7 and 3 tokens in domains a, b, a, b, a, b; the best first is 2, 0, 4, 3, 1, 5.
TOKENS = (3, 4, 5, 6, 7, 3)
DIFFERENCES = (3.0, 0.0, 4.0, 1.0, 2.0, -1.0)
PARTS = [
    (0, "clean", 3),
    (1, "clean", 1),
    (1, "ocr", 3),
    (2, "clean", 5),
    (3, "ocr", 6),
    (4, "ocr", 2),
    (4, "spam", 5),
    (5, "unknown", 3),
]


def write_truth(storage: Storage, corpus: CorpusManifest, parts: Sequence[tuple[int, str, int]]) -> list[TruthManifest]:
    columns = [pa.array(values) for values in zip(*parts, strict=True)]
    with storage.publish(layout.truth_file(corpus.corpus_id, resolve_truth_id("kind"))) as path:
        pq.write_table(pa.table(columns, names=["sequence_id", "kind", "num_tokens"]), path)
        digest = digest_file(path)
    return [TruthManifest(corpus_id=corpus.corpus_id, field="kind", digest=digest, kinds={"clean": 3, "unknown": 1})]


def summarise(
    folder: Path,
    parts: Sequence[tuple[int, str, int]] = PARTS,
    clean: Sequence[str] = ("clean",),
    within: str = "corpus",
    ratio: float = 0.5,
) -> TruthSummary:
    storage = Storage(str(folder))
    corpus = make_scored_corpus(storage, [1.0] * 6, [1.0 + value for value in DIFFERENCES], [1] * 6)
    selection = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=ratio, within=within))
    return judge(storage, corpus, selection, write_truth(storage, corpus, parts), clean)


def judge(
    storage: Storage, corpus: CorpusManifest, selection: SelectionManifest, truth: list[TruthManifest], clean: Sequence[str]
) -> TruthSummary:
    with connect(storage) as connection:
        candidate_scores(connection, storage, corpus, TEACHER, REFERENCE, selection.score)
        return summarise_truth(connection, storage, corpus, selection, truth, clean)


def test_what_was_kept_of_each_kind_by_hand(tmp_path: Path) -> None:
    truth = summarise(tmp_path)
    rows = [
        (row.kind, row.is_clean, row.is_mixed, row.num_candidates, row.num_selected, row.num_selected_tokens) for row in truth.kinds
    ]
    assert rows == [
        ("clean", True, False, 2, 2, 8),
        ("clean and dirt in one", False, True, 1, 0, 0),
        ("ocr", False, False, 1, 0, 0),
        ("several kinds of dirt", False, True, 1, 1, 7),
        ("unknown", False, False, 1, 0, 0),
    ]
    assert [row.mean_difference_score for row in truth.kinds] == [3.5, 0.0, 1.0, 2.0, -1.0]
    # Kept: 8 clean tokens and 7 of dirt, of 9 clean and 16 of dirt; what is unknown counts for neither.
    assert (truth.precision, truth.recall, truth.clean_share) == (
        pytest.approx(8 / 15),
        pytest.approx(8 / 9),
        pytest.approx(9 / 25),
    )
    assert (truth.num_records, truth.num_unknown) == (4, 1)


@pytest.mark.parametrize("within", ["corpus", "domain"])
def test_another_ratio_is_told_as_its_own_selection_would_be(tmp_path: Path, within: str) -> None:
    told = {row.ratio: (row.precision, row.recall) for row in summarise(tmp_path / "half", within=within, ratio=0.5).ratios}
    for ratio in (0.35, 0.7):
        itself = summarise(tmp_path / f"{ratio}", within=within, ratio=ratio)
        assert told[ratio] == (itself.precision, itself.recall)
    assert told[0.05] == (None, 0.0)  # keeps nothing


def test_several_labels_may_be_clean_and_mixtures_of_them_are_no_dirt(tmp_path: Path) -> None:
    truth = summarise(tmp_path, clean=("clean", "ocr", "spam"))
    assert {row.kind for row in truth.kinds if row.is_mixed} == {"several clean kinds"}
    assert truth.precision == 1.0


def test_without_a_clean_label_kinds_are_told_and_no_precision(tmp_path: Path) -> None:
    truth = summarise(tmp_path, clean=("good",))
    assert (truth.precision, truth.recall, truth.clean_share, truth.ratios) == (None, None, None, ())
    assert sum(row.num_candidates for row in truth.kinds) == 6
    assert {row.kind for row in truth.kinds if row.is_mixed} == {"several kinds"}


def test_labels_of_other_sequences_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"the labels of corpus made are of other sequences than its 6 candidates; delete .*truth/made/"
    ):
        summarise(tmp_path, parts=PARTS[:-1])
