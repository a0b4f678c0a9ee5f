"""A corpus with a selection for tests of exports: long documents of several domains, some of their sequences kept, in several shards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from miniplm import layout
from miniplm.config.exports import ExportConfig
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.export.exporting import export_selection
from miniplm.export.job import ExportJob
from miniplm.export.records import ExportManifest
from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import SelectionManifest
from miniplm.selection.cut import SELECTION_SCHEMA
from miniplm.selection.kept import publish_kept
from miniplm.storage.root import Storage
from tests.miniplm.corpus_fixtures import TRAINING_TEXT, make_config, write_jsonl
from tests.miniplm.made_corpora import describe_selection

DOMAINS = ("web", "code", "books", "rare")
# No sentence end in it, and three or four bytes a character: cuts are made by force, inside characters.
WIDE = "日本語の文章中文字符串😀🎉漢字仮名交じり文"


@dataclass(frozen=True)
class Selected:
    """A storage root with a corpus and a selection of it; `texts` are the documents by id."""

    storage: Storage
    corpus: CorpusManifest
    selection: SelectionManifest
    texts: list[str]

    def job(self, format: str, to: Path | str, **settings: Any) -> ExportJob:
        config = ExportConfig.model_validate({"format": format, "to": str(to), **settings})
        return ExportJob(self.storage, self.corpus, self.selection, config)

    def export(self, format: str, to: Path | str, resume: bool = False, **settings: Any) -> ExportManifest:
        return export_selection(self.job(format, to, **settings), resume)[0]

    def kept(self) -> list[dict[str, Any]]:
        """The kept sequences, in order, with `token_ids` as a list."""
        rows = []
        for entry, shard in zip(self.corpus.split_shards("candidate"), self.selection.shards, strict=True):
            table = read_shard(self.storage, entry)
            with self.storage.open(layout.selection_shard(self.selection.selection_id, shard.shard_index)) as file:
                kept = set(pq.read_table(file)["sequence_id"].to_pylist())
            rows += [
                {**row, "token_ids": ids.tolist()}
                for row, ids in zip(table.to_pylist(), read_token_ids(table), strict=True)
                if row["sequence_id"] in kept
            ]
        return rows


def make_texts(num: int, seed: int = 0) -> list[dict[str, str]]:
    """Documents from a word to many windows long, one domain rarely seen."""
    rng = random.Random(seed)
    records = []
    for _ in range(num):
        parts = rng.choices([*TRAINING_TEXT, WIDE], k=rng.choice([1, 1, 2, 8]))
        text = "".join("".join(rng.choices(part, k=20)) if part == WIDE else part[: rng.randint(5, 60)] for part in parts)
        records.append({"text": f"{text} {rng.random()}", "domain": rng.choices(DOMAINS, [5, 3, 3, 0.5])[0]})
    return records


def select(storage: Storage, corpus: CorpusManifest, ratio: float, seed: int = 0) -> SelectionManifest:
    """A selection of random sequences, as `select_sequences` writes one."""
    rng = random.Random(seed)
    shards = []
    selection_id = f"made-{ratio}-{seed}"
    for entry in corpus.split_shards("candidate"):
        num_tokens = read_shard(storage, entry, ["num_tokens"])["num_tokens"].to_numpy()
        rows = [row for row in range(entry.num_sequences) if rng.random() < ratio]
        table = pa.table(
            {
                "sequence_id": [entry.first_sequence_id + row for row in rows],
                "teacher_nll": [2.0 + row / 8 for row in rows],
                "reference_nll": [3.0 + row / 4 for row in rows],
                "difference_score": [1.0 + row / 8 for row in rows],
            },
            schema=SELECTION_SCHEMA,
        )
        shards.append(publish_kept(storage, selection_id, entry, table, table, num_tokens[rows]))
    num_candidates = corpus.split_counts("candidate").num_sequences
    manifest = describe_selection(selection_id, corpus.corpus_id, shards, ratio=ratio, num_candidates=num_candidates)
    storage.write_json(layout.selection_manifest(selection_id), manifest.as_json())
    return manifest


def make_selected(
    folder: Path, tokenizer: str, records: Sequence[dict[str, str]], ratio: float = 0.6, seed: int = 0, **settings: Any
) -> Selected:
    """Prepares the records below a folder, and selects."""
    storage = Storage(str(folder / "data"))
    source = write_jsonl(folder / "source.jsonl", records)
    corpus = prepare_corpus(storage, make_config(tokenizer, {"path": str(source), "domain": "domain"}, **settings))
    return Selected(storage, corpus, select(storage, corpus, ratio, seed), [record["text"] for record in records])
