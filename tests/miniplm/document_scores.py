"""Scores of documents for tests, without a model: an NLL a token that depends on the token's document and place alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from miniplm import layout
from miniplm.config.selection import SelectionConfig
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import SelectionManifest
from miniplm.scoring.documents import publish_document_scores
from miniplm.scoring.engine import SequenceScores
from miniplm.selection.ranking import select_sequences
from miniplm.storage.root import Storage
from tests.miniplm.corpus_fixtures import make_config, save_tokenizer, write_jsonl
from tests.miniplm.export.exported import make_texts
from tests.miniplm.made_corpora import write_scores

Parts = list[tuple[int, int, int, float]]


def write_document_scores(storage: Storage, corpus: CorpusManifest, model_id: str, seed: int, step: float = 0.25) -> Parts:
    """Publishes scores of all candidates and of their documents; gives (document, sequence, scored tokens, NLL sum) of every part.

    NLLs are multiples of `step`, so that sums are exact and scores tie.
    """
    eos, told = corpus.tokenizer.eos_token_id, []
    places: dict[int, int] = defaultdict(int)
    for shard in corpus.split_shards("candidate"):
        table = read_shard(storage, shard)
        parts: list[list[tuple[int, float]]] = []
        for row, token_ids in zip(table.to_pylist(), read_token_ids(table), strict=True):
            cuts = np.flatnonzero(token_ids[:-1] == eos) + 1
            pieces = np.split(token_ids, cuts)
            documents = row["document_ids"] if len(row["document_ids"]) == len(pieces) else [row["document_ids"][0]] * len(pieces)
            of_row = []
            for document, piece in zip(documents, pieces, strict=True):
                nll = step * sum((document * 31 + (places[document] + at) * 7 + seed) % 13 for at in range(1, len(piece)))
                places[document] += len(piece)
                of_row.append((len(piece) - 1, nll))
                told.append((document, row["sequence_id"], len(piece) - 1, nll))
            parts.append(of_row)
        flat = [part for of_row in parts for part in of_row]
        sums = [sum(nll for _, nll in of_row) for of_row in parts]
        counts = [sum(number for number, _ in of_row) for of_row in parts]
        write_scores(storage, shard, model_id, sums, counts)
        scores = SequenceScores(
            np.array(sums),
            np.array(counts, dtype=np.int32),
            np.array([len(of_row) for of_row in parts]),
            np.array([nll for _, nll in flat]),
            np.array([number for number, _ in flat], dtype=np.int32),
            throughput=None,  # type: ignore[arg-type]
        )
        entry = publish_document_scores(storage, shard, model_id, table, scores)
        path = layout.score_shard_manifest(shard.corpus_id, model_id, shard.shard_index)
        storage.write_json(path, {**storage.read_json(path), "documents": entry.as_json()})
    return told


class Scored:
    """A corpus whose documents go over sequences and shards, with scores; `documents` has a row each, by id, made by pandas."""

    def __init__(self, folder: Path) -> None:
        self.storage = Storage(str(folder / "data"))
        records = make_texts(80, seed=3)
        self.texts = [record["text"] for record in records]
        source = write_jsonl(folder / "source.jsonl", records)
        config = make_config(
            save_tokenizer(folder / "tokenizer"),
            {"path": str(source), "domain": "domain"},
            sequence_length=24,
            sequences_per_shard=17,
        )
        self.corpus = prepare_corpus(self.storage, config)
        parts = {model: write_document_scores(self.storage, self.corpus, model, seed) for model, seed in (("t", 1), ("r", 5))}
        self.documents = self._add_up(parts)

    def _add_up(self, parts: dict[str, Any]) -> pd.DataFrame:
        names = ["document", "sequence", "scored", "nll"]
        teacher, reference = (pd.DataFrame(parts[model], columns=names).groupby("document") for model in ("t", "r"))
        frame = pd.DataFrame({"scored": teacher["scored"].sum(), "t": teacher["nll"].sum(), "r": reference["nll"].sum()})
        frame["sum"] = frame["r"] - frame["t"]
        frame["mean"] = frame["r"] / frame["scored"].clip(lower=1) - frame["t"] / frame["scored"].clip(lower=1)
        tokens, domains = Counter[int](), {}
        for row in self.sequences():
            tokens.update(row["owners"])
            domains |= dict.fromkeys(row["owners"], row["domain"])
        return frame.assign(tokens=pd.Series(tokens), domain=pd.Series(domains)).sort_index()

    def sequences(self) -> list[dict[str, Any]]:
        """All candidate sequences, `owners` being the document of each token."""
        rows = []
        for shard in self.corpus.split_shards("candidate"):
            table = read_shard(self.storage, shard)
            for row, ids in zip(table.to_pylist(), read_token_ids(table), strict=True):
                number = np.append(0, np.cumsum(ids[:-1] == self.corpus.tokenizer.eos_token_id))
                rows.append({**row, "token_ids": ids.tolist(), "owners": np.array(row["document_ids"])[number].tolist()})
        return rows

    def select(self, **rule: Any) -> SelectionManifest:
        return select_sequences(self.storage, self.corpus, "t", "r", SelectionConfig.model_validate({"unit": "document", **rule}))

    def read(self, manifest: SelectionManifest) -> list[pd.DataFrame]:
        return [
            pq.read_table(self.storage.path(layout.selection_shard(manifest.selection_id, shard.shard_index))).to_pandas()
            for shard in manifest.shards
        ]
