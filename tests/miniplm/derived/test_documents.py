"""Kept documents packed anew: each is in the sequences once and whole, whoever makes the shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from miniplm.corpus.reader import load_corpus_tokenizer, read_token_ids
from miniplm.derived.reader import read_derived_shard
from miniplm.derived.sets import make_set
from miniplm.errors import DerivedError
from miniplm.training.methods import METHODS, MethodInputs
from tests.miniplm.document_scores import Scored


def test_kept_documents_are_trained_on_whole_and_once(scored: Scored) -> None:
    selection = scored.select(ratio=0.6)
    inputs, method = MethodInputs(scored.corpus, selection), METHODS["miniplm"]
    with pytest.raises(DerivedError, match="not complete"):
        method.list_shards(scored.storage, inputs)
    (job,) = method.list_derived_jobs(inputs)
    made = make_set(scored.storage, job)
    shards = method.list_shards(scored.storage, inputs)
    assert sum(shard.num_tokens for shard in shards) == made.num_tokens == selection.num_selected_tokens
    assert made.counts == {"documents": selection.num_selected}
    tokenizer, eos = load_corpus_tokenizer(scored.storage, scored.corpus.corpus_id), scored.corpus.tokenizer.eos_token_id
    texts: list[tuple[int, str]] = []
    running: dict[str, list[int]] = {}
    for shard in made.shards:
        table = read_derived_shard(scored.storage, shard)
        lengths = table["num_tokens"].to_pylist()
        assert max(lengths) <= scored.corpus.sequence_length + 1
        for row, ids in zip(table.to_pylist(), read_token_ids(table), strict=True):
            documents = iter(row["document_ids"])
            for piece in np.split(ids, np.flatnonzero(ids[:-1] == eos) + 1):
                document, open_ids = next(documents), running.setdefault(row["domain"], [])
                open_ids += piece.tolist()
                if open_ids[-1] == eos:
                    texts.append((document, tokenizer.decode(open_ids[:-1])))
                    open_ids.clear()
    assert not any(running.values())
    kept = sorted({document for rows in scored.read(selection) for document in rows["document_id"]})
    assert sorted(texts) == [(document, scored.texts[document]) for document in kept]
    shared = METHODS["miniplm+vanilla-kd"].list_derived_jobs(inputs)
    assert [other.derived_id for other in shared] == [job.derived_id]
    assert method.describe_data(inputs) != method.describe_data(MethodInputs(scored.corpus, scored.select(ratio=0.5)))


def test_a_set_is_the_same_bytes_in_another_place_and_order(scored: Scored, tmp_path: Path) -> None:
    other = Scored(tmp_path)
    digests = []
    for one in (scored, other):
        (job,) = METHODS["miniplm"].list_derived_jobs(MethodInputs(one.corpus, one.select(ratio=0.6)))
        if one is other:  # the last shard alone first, as another worker would
            sources = job.list_sources(one.storage)
            maker = job.open_maker(one.storage, sources, "cpu")
            maker.make_shard(len(sources) - 1, lambda progress: None)
        digests.append([shard.digest for shard in make_set(one.storage, job).shards])
    assert digests[0] == digests[1]
