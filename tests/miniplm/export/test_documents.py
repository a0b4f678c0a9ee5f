"""Documents restored from kept sequences, held against the documents themselves and a plain walk over all sequences."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from miniplm.corpus.reader import load_corpus_tokenizer, read_shard, read_token_ids
from tests.miniplm.corpus_fixtures import save_tokenizer
from tests.miniplm.export.exported import Selected, make_selected, make_texts


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def list_kept_tokens(selected: Selected) -> dict[int, dict[int, tuple[int, int]]]:
    """By document: token number -> its id and its sequence, for all that were kept; by a plain walk over all sequences."""
    kept_ids = {row["sequence_id"] for row in selected.kept()}
    eos = selected.corpus.tokenizer.eos_token_id
    seen: dict[int, int] = defaultdict(int)
    found: dict[int, dict[int, tuple[int, int]]] = defaultdict(dict)
    for entry in selected.corpus.split_shards("candidate"):
        table = read_shard(selected.storage, entry)
        for row, token_ids in zip(table.to_pylist(), read_token_ids(table), strict=True):
            documents = iter(row["document_ids"])
            document = next(documents)
            for token_id in token_ids.tolist():
                if row["sequence_id"] in kept_ids:
                    found[document][seen[document]] = (token_id, row["sequence_id"])
                seen[document] += 1
                if token_id == eos:
                    document = next(documents, -1)
    return found


def list_runs(tokens: dict[int, tuple[int, int]], eos: int) -> list[tuple[int, int, bool]]:
    """The unbroken runs of token numbers: first, end without EOS, and whether EOS is there."""
    runs: list[tuple[int, int, bool]] = []
    for number in sorted(tokens):
        is_eos = tokens[number][0] == eos
        if number - 1 in tokens:
            first, end, _ = runs[-1]
            runs[-1] = (first, end + (not is_eos), is_eos)
        else:
            runs.append((number, number + (not is_eos), is_eos))
    return [run for run in runs if run[1] > run[0]]


@pytest.mark.parametrize(("corpus", "shard_tokens"), [("small", 60), ("small", 150), ("small", 10**9), ("large", 150)])
def test_documents_are_the_unbroken_runs_of_kept_tokens(
    request: pytest.FixtureRequest, tmp_path: Path, corpus: str, shard_tokens: int
) -> None:
    selected: Selected = request.getfixturevalue(corpus)
    manifest = selected.export("jsonl", tmp_path / "out", shard_tokens=shard_tokens)
    tokenizer = load_corpus_tokenizer(selected.storage, selected.corpus.corpus_id)
    eos = selected.corpus.tokenizer.eos_token_id
    rows = read_rows(tmp_path / "out")
    expected = []
    for document, tokens in list_kept_tokens(selected).items():
        for first, end, ends in list_runs(tokens, eos):
            text = tokenizer.decode([tokens[number][0] for number in range(first, end)])
            sequences = list(dict.fromkeys(tokens[number][1] for number in range(first, end + ends)))
            expected.append((document, first, end, first == 0 and ends, text, sequences))
    names = ("document_id", "token_start", "token_end", "is_whole", "text", "sequence_ids")
    assert sorted(tuple(row[name] for name in names) for row in rows) == sorted(expected)
    assert len({row["id"] for row in rows}) == len(rows)
    whole = [row for row in rows if row["is_whole"]]
    assert len(whole) == manifest.num_whole > 2
    assert all(row["text"] == selected.texts[row["document_id"]] for row in whole)
    assert all(row["source"].endswith("source.jsonl") and row["record"] == row["document_id"] + 1 for row in rows)
    assert (shard_tokens == 10**9) == (manifest.num_files == 1)


def test_scores_of_a_document_are_means_weighted_by_its_tokens(small: Selected, tmp_path: Path) -> None:
    small.export("jsonl", tmp_path / "out")
    kept = list_kept_tokens(small)
    first_ids = {entry.first_sequence_id for entry in small.corpus.split_shards("candidate")}
    for row in read_rows(tmp_path / "out"):
        sequences = [kept[row["document_id"]][number][1] for number in range(row["token_start"], row["token_end"])]
        places = [sequence - max(first for first in first_ids if first <= sequence) for sequence in sequences]
        assert row["difference_score"] == pytest.approx(sum(1 + place / 8 for place in places) / len(places))
        assert row["reference_nll"] - row["teacher_nll"] == pytest.approx(row["difference_score"])


def test_a_document_of_many_files_lies_whole_in_one(tmp_path: Path) -> None:
    records = [{"text": f"{'many words and no end ' * 40}{index}", "domain": "web"} for index in range(2)]
    records += [{"text": f"short {index}", "domain": "code"} for index in range(30)]
    selected = make_selected(
        tmp_path, save_tokenizer(tmp_path / "tokenizer"), records, ratio=1, sequence_length=16, sequences_per_shard=10
    )
    manifest = selected.export("jsonl", tmp_path / "out", shard_tokens=40)
    rows = read_rows(tmp_path / "out")
    assert {row["document_id"]: row["text"] for row in rows} == dict(enumerate(selected.texts))
    assert manifest.num_parts == 0
    assert manifest.num_files > 2
    assert all(path.stat().st_size for path in (tmp_path / "out").glob("*.jsonl"))


def test_what_a_tokenizer_puts_before_a_text_is_not_text_of_a_document(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path / "tokenizer", "metaspace")
    records = [{"text": record["text"], "domain": "web"} for record in make_texts(20) if record["text"].isascii()]
    selected = make_selected(tmp_path, tokenizer, records, ratio=1)
    selected.export("jsonl", tmp_path / "out", shard_tokens=50)
    texts = {row["document_id"]: row["text"] for row in read_rows(tmp_path / "out")}
    decoder = load_corpus_tokenizer(selected.storage, selected.corpus.corpus_id)
    expected = {index: decoder.decode(decoder.encode_documents([text])[0]) for index, text in enumerate(selected.texts)}
    assert texts == expected
