"""Digests of documents' texts: those of the sources, kept, and a way for scores from outside to name a document."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniplm import layout
from miniplm.config.files import load_config
from miniplm.config.selection import SelectionConfig
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import load_corpus
from miniplm.corpus.text_digests import list_text_digests, provide_text_digests
from miniplm.errors import ConfigError, CorpusError
from miniplm.records.run import load_run
from miniplm.run import stages
from miniplm.run.resolution import resolve
from miniplm.selection.ranking import select_sequences
from miniplm.storage.root import Storage
from tests.miniplm.corpus_fixtures import make_config, save_tokenizer, write_jsonl
from tests.miniplm.selection.test_selection import read_selection
from tests.tiny_runs import FinishedRun


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def test_each_document_has_the_digest_of_its_text(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "one two."}, "no object", {"text": "Ünï five"}, {"text": "one two."}])
    config = make_config(save_tokenizer(tmp_path / "tokenizer", "word"), {"path": str(path), "domain_name": "d"})
    storage = Storage(str(tmp_path / "data"))
    corpus = prepare_corpus(storage, config)
    with pytest.raises(CorpusError, match=r"digests of the texts of corpus .* `miniplm select CONFIG` reads them"):
        list_text_digests(storage, corpus)
    (manifest,) = provide_text_digests(storage, config, corpus)
    assert list_text_digests(storage, corpus) == [layout.text_digests(corpus.corpus_id)]
    rows = pq.read_table(storage.path(layout.text_digests(corpus.corpus_id))).to_pylist()
    assert [(row["document_id"], row["text_digest"]) for row in rows] == [
        (0, digest("one two.")),
        (2, digest("Ünï five")),
        (3, digest("one two.")),
    ]
    assert manifest.num_documents == 3
    path.unlink()  # kept, and then of no source
    assert provide_text_digests(storage, config, corpus) == [manifest]


def test_scores_by_text_select_what_scores_by_document_do(finished_run: FinishedRun, tmp_path: Path) -> None:
    shutil.copytree(finished_run.data, tmp_path / "data")
    storage = Storage(str(tmp_path / "data"))
    config = load_config(finished_run.config, [f"storage={tmp_path / 'data'}"])
    record = load_run(storage, "tiny")
    corpus = load_corpus(storage, record.corpus_id)
    provide_text_digests(storage, config.corpus, corpus)
    table = pa.concat_tables(pq.read_table(storage.path(relative)) for relative in list_text_digests(storage, corpus))
    edu = [int(text[:6], 16) / 2**24 for text in table["text_digest"].to_pylist()]
    by_text = {text.upper(): value for text, value in zip(table["text_digest"].to_pylist(), edu, strict=True)}
    pq.write_table(pa.table({"document_id": table["document_id"], "edu": edu}), tmp_path / "by-document.parquet")
    pq.write_table(pa.table({"text_digest": list(by_text), "edu": list(by_text.values())}), tmp_path / "by-text.parquet")
    kept = []
    for key, name in (("document_id", "by-document"), ("text_digest", "by-text")):
        signal = {"name": "edu", "path": str(tmp_path / f"{name}.parquet"), "key": key, "column": "edu"}
        rule = SelectionConfig.model_validate({"ratio": 0.4, "score": "edu + difference_score / 10", "signals": [signal]})
        if key == "text_digest":  # as a stage of a run, which reads the digests out of the sources
            storage.delete(layout.text_digests(corpus.corpus_id))
            plan = resolve(config, checks=False).model_copy(update={"selection": rule})
            assert record.reference is not None
            manifest, _ = stages.select(storage, plan, corpus, record.reference)
        else:
            assert record.teacher is not None
            assert record.reference is not None
            manifest = select_sequences(storage, corpus, record.teacher.model_id, record.reference.model_id, rule)
        kept.append(read_selection(storage, manifest))
    assert kept[0].equals(kept[1])
    pq.write_table(pa.table({"text_digest": ["00"], "edu": [1.0]}), tmp_path / "by-text.parquet")
    with pytest.raises(ConfigError, match=r"documents of the candidates have no value"):
        stages.select(storage, plan, corpus, record.reference)
