"""Labels of documents: read beside the corpus, counted by candidate sequence, and never a part of what is made."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniplm import layout
from miniplm.config.run import CorpusConfig
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.truth import provide_truth, resolve_truth_id, split_tokens
from miniplm.errors import ConfigError
from miniplm.records.manifests import CorpusManifest
from miniplm.storage.root import Storage
from tests.miniplm.corpus_fixtures import make_config, read_tree, save_tokenizer, write_jsonl


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), "word")


def prepare(folder: Path, config: CorpusConfig) -> tuple[Storage, CorpusManifest]:
    storage = Storage(str(folder / "data"))
    return storage, prepare_corpus(storage, config)


def read_parts(storage: Storage, corpus_id: str, field: str) -> list[tuple[int, str, int]]:
    rows = pq.read_table(storage.path(layout.truth_file(corpus_id, resolve_truth_id(field)))).to_pylist()
    return [(row["sequence_id"], row["kind"], row["num_tokens"]) for row in rows]


def record(text: str, **meta: Any) -> dict[str, Any]:
    return {"text": text, "meta": {"domain": "d", **meta}}


def test_tokens_of_a_sequence_are_told_apart_by_label(tmp_path: Path, tokenizer: str) -> None:
    # 3, 3, 6 and 2 tokens with their ends, one of no label: sequences of at most 9, cut at ends.
    records = [
        record("one two", kind="clean"),
        record("one two", kind="dirt"),
        record("one two three four five", kind="clean"),
        record("one"),
    ]
    path = write_jsonl(tmp_path / "a.jsonl", [*records[:2], "no object", *records[2:]])
    storage, corpus = prepare(tmp_path, make_config(tokenizer, {"path": str(path), "domain": "meta.domain"}, truth="meta.kind"))
    config = make_config(tokenizer, {"path": str(path), "domain": "meta.domain"}, truth="meta.kind")
    (manifest,) = provide_truth(storage, config, corpus)
    assert manifest.kinds == {"clean": 2, "dirt": 1, "unknown": 2}
    assert read_parts(storage, corpus.corpus_id, "meta.kind") == [
        (0, "clean", 3),
        (0, "dirt", 3),
        (1, "unknown", 2),
        (1, "clean", 6),
    ]
    path.unlink()  # what was read once needs no sources any more
    assert provide_truth(storage, config, corpus) == [manifest]


def test_labels_kept_from_when_nan_was_one_are_read_anew(tmp_path: Path, tokenizer: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [record("one two three.", kind="clean"), record("four five.")])
    source = {"path": str(path), "domain": "meta.domain"}
    storage, corpus = prepare(tmp_path, make_config(tokenizer, source))
    config = make_config(tokenizer, source, truth="meta.kind")
    (manifest,) = provide_truth(storage, config, corpus)
    kept = layout.truth_manifest(corpus.corpus_id, resolve_truth_id("meta.kind"))
    storage.write_json(kept, manifest.model_copy(update={"kinds": {"clean": 1, "nan": 1}}).as_json())
    assert provide_truth(storage, config, corpus) == [manifest]


def test_a_corpus_is_the_same_with_and_without_truth(tmp_path: Path, tokenizer: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [record("one two three.", kind=1), record("four five.", kind=2)])
    source = {"path": str(path), "domain": "meta.domain"}
    storage, corpus = prepare(tmp_path / "plain", make_config(tokenizer, source))
    other, labelled = prepare(tmp_path / "labelled", make_config(tokenizer, source, truth="meta.kind", clean=["1"]))
    assert labelled == corpus
    provide_truth(other, make_config(tokenizer, source, truth="meta.kind"), labelled)
    assert read_tree(storage, layout.corpus_folder(corpus.corpus_id)) == read_tree(other, layout.corpus_folder(corpus.corpus_id))


def test_labels_of_parquet_are_columns_or_fields_of_any_plain_type(tmp_path: Path, tokenizer: str) -> None:
    path = tmp_path / "a.parquet"
    table = {
        "text": ["one two."] * 4,
        "n": [1, 2, None, 1],
        "pandas": [1.0, 1.5, math.nan, math.nan],
        "meta": [{"ok": True}, {"ok": False}, None, {"ok": None}],
    }
    pq.write_table(pa.table(table), path)
    source = {"path": str(path), "format": "parquet", "domain_name": "d"}
    storage, corpus = prepare(tmp_path, make_config(tokenizer, source))
    found = {
        field: provide_truth(storage, make_config(tokenizer, source, truth=field), corpus)[0].kinds
        for field in ("n", "pandas", "meta.ok")
    }
    assert found == {
        "n": {"1": 2, "2": 1, "unknown": 1},
        "pandas": {"1": 1, "1.5": 1, "unknown": 2},
        "meta.ok": {"false": 1, "true": 1, "unknown": 2},
    }
    with pytest.raises(
        ConfigError,
        match=r"no record of the sources has a value in a field 'kind'; .*a.parquet has text \(string\), n \(int64\), pandas \(double\), meta.ok",
    ):
        provide_truth(storage, make_config(tokenizer, source, truth="kind"), corpus)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            "meta.sort",
            r"no record of the sources has a value in a field 'meta.sort'; the first record of .*a.jsonl has text, meta.domain, meta.kind",
        ),
        ("meta", r"the field 'meta' holds an object in .*a.jsonl, record 1; a label is a text, a number or true and false"),
        ("text", r"the field 'text' holds a text of 201 characters in .*a.jsonl, record 1; a label has at most 200"),
        ("meta.name", r"the field 'meta.name' has more than 100 values \(0, 1, 2, 3, 4, \.\.\. \(101 in all\)\)"),
    ],
)
def test_a_field_that_is_no_label_is_refused(tmp_path: Path, tokenizer: str, field: str, message: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [record("x" * 200 + ".", kind="clean", name=index) for index in range(102)])
    source = {"path": str(path), "domain": "meta.domain"}
    storage, corpus = prepare(tmp_path, make_config(tokenizer, source))
    with pytest.raises(ConfigError, match=message):
        provide_truth(storage, make_config(tokenizer, source, truth=field), corpus)


def test_text_files_have_no_labels(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.txt").write_text("one two.")
    source = {"path": str(tmp_path / "*.txt"), "format": "text", "domain_name": "d"}
    storage, corpus = prepare(tmp_path, make_config(tokenizer, source))
    with pytest.raises(ConfigError, match="files of plain text have none"):
        provide_truth(storage, make_config(tokenizer, source, truth="kind"), corpus)


def test_a_grown_corpus_keeps_the_labels_of_files_that_are_gone(tmp_path: Path, tokenizer: str) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", [record("one two.", kind="clean")])
    source = {"path": str(tmp_path / "in" / "*.jsonl"), "domain": "meta.domain"}
    config = make_config(tokenizer, source, truth="meta.kind", extend=True)
    storage, first = prepare(tmp_path, config)
    provide_truth(storage, config, first)
    (tmp_path / "in" / "a.jsonl").unlink()
    write_jsonl(tmp_path / "in" / "b.jsonl", [record("three four.", kind="dirt")])
    _, grown = prepare(tmp_path, config)
    assert [manifest.kinds for manifest in provide_truth(storage, config, grown)] == [{"clean": 1}, {"dirt": 1}]
    # Labels that were never read of a file that is gone are not known, and said so.
    storage.delete(layout.truth_manifest(first.corpus_id, resolve_truth_id("meta.kind")))
    gone, _ = provide_truth(storage, config, grown)
    assert (gone.kinds, gone.gone_files) == ({"unknown": 1}, (str(tmp_path / "in" / "a.jsonl"),))


@pytest.mark.parametrize(
    ("token_ids", "num_documents", "expected"),
    [
        ([5, 6, 0, 7], 2, [3, 1]),
        ([5, 6, 0, 7, 0], 2, [3, 2]),
        ([0, 7, 8], 2, [0, 3]),  # the end alone of a document before
        ([5, 0, 6, 0, 7], 2, [3, 2]),  # a text holds the separator: shared alike
        ([5], 1, [1]),
    ],
)
def test_tokens_are_split_at_the_ends_of_documents(token_ids: list[int], num_documents: int, expected: list[int]) -> None:
    assert split_tokens(np.array(token_ids), 0, num_documents) == expected


def test_labels_with_odd_characters_are_kept_as_they_can_be(tmp_path: Path, tokenizer: str) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(record("one.", kind=kind)) for kind in ("\ud800", " spaced ", "", "'; DROP", math.nan)]
    path.write_text("\n".join(lines))
    source = {"path": str(path), "domain": "meta.domain"}
    storage, corpus = prepare(tmp_path, make_config(tokenizer, source))
    (manifest,) = provide_truth(storage, make_config(tokenizer, source, truth="meta.kind"), corpus)
    assert manifest.kinds == {"'; DROP": 1, "\\ud800": 1, "spaced": 1, "unknown": 2}


def test_clean_labels_are_written_as_those_of_documents_are() -> None:
    config = make_config("t", {"path": "a.jsonl", "domain_name": "d"}, truth="ok", clean=[True, 1, 2.0, 2.5, "good"])
    assert config.clean == ("true", "1", "2", "2.5", "good")
