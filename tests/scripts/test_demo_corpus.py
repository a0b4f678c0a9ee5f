"""How the sample corpus is cut, and what it is made of."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tokenizers import Tokenizer

from scripts.demo_corpus import (
    DOMAINS,
    TOKENS_PER_DOMAIN,
    cut_text,
    digest_texts,
    read_speeches,
    split_text,
    take_documents,
)
from scripts.demo_dirt import CLEAN, KINDS, SHARE, add_dirt

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_text_is_cut_at_blank_lines_once_a_document_is_long_enough() -> None:
    paragraphs = ["a" * 60, "b" * 60, "c" * 60, "d" * 60]
    assert cut_text("\n\n".join(paragraphs), min_chars=100, max_chars=200) == [
        f"{paragraphs[0]}\n\n{paragraphs[1]}",
        f"{paragraphs[2]}\n\n{paragraphs[3]}",
    ]


def test_a_short_end_joins_the_document_before_it() -> None:
    assert cut_text("a" * 100 + "\n\n" + "b" * 10, min_chars=100, max_chars=200) == ["a" * 100 + "\n\n" + "b" * 10]


def test_a_text_shorter_than_half_a_document_gives_none() -> None:
    assert cut_text("a" * 49, min_chars=100, max_chars=200) == []
    assert cut_text("a" * 50, min_chars=100, max_chars=200) == ["a" * 50]


def test_a_long_paragraph_is_cut_at_lines_and_then_at_sentences() -> None:
    text = "One two. Three four. " + "x\n" + "\n\nnext"
    pieces = split_text(text, 12, (r"(?<=\n\n)(?!\n)", r"(?<=\n)", r"(?<=[.;] )"))
    assert pieces == ["One two. ", "Three four. ", "x\n", "\n", "\n", "next"]
    assert "".join(pieces) == text


def test_documents_are_taken_by_digest_until_there_are_enough_tokens_and_no_text_twice() -> None:
    texts = [(f"source-{i}", letter * 800) for i, letter in enumerate("abcda")]
    [taken] = take_documents(iter(texts), len, 2_000)
    assert len(taken) == 3
    assert len({text for _, text in taken}) == 3
    assert [taken] == take_documents(iter(texts), len, 2_000)
    assert {text for _, text in take_documents(iter(reversed(texts)), len, 2_000)[0]} == {text for _, text in taken}
    # What a second list takes is in no other.
    first, second = take_documents(iter(texts), len, 1_000, 1_000)
    assert first == taken[:2]
    assert len({text for _, text in first + second}) == 4


def test_too_little_text_is_refused_with_the_counts() -> None:
    with pytest.raises(ValueError, match=r"hold 800 tokens where 801 are wanted"):
        take_documents(iter([("source", "a" * 800)]), len, 801)


@pytest.mark.real
def test_the_sample_corpus_has_its_domains_and_its_dirt_in_even_parts() -> None:
    for domain in DOMAINS:
        documents, heldout = (read_documents(folder, domain.name) for folder in ("", "heldout/"))
        assert 50 <= len(documents) <= 150
        assert {document["meta"]["domain"] for document in documents + heldout} == {domain.name}
        kinds = Counter(document["meta"]["kind"] for document in documents)
        assert set(kinds) == {CLEAN, *KINDS}
        assert kinds[CLEAN] == len(documents) - round(SHARE * len(documents))
        assert max(kinds[kind] for kind in KINDS) - min(kinds[kind] for kind in KINDS) <= 1
        assert {document["meta"]["kind"] for document in heldout} == {CLEAN}
        assert not {document["text"] for document in documents} & {document["text"] for document in heldout}


@pytest.mark.real
def test_the_sample_corpus_is_the_text_that_the_readme_tells_of() -> None:
    """Packages that set-up installs in other versions change nothing; where this fails, README's figures are to be made anew."""
    parts = [
        [document["text"] for domain in DOMAINS for document in read_documents(folder, domain.name)] for folder in ("", "heldout/")
    ]
    assert digest_texts(parts[0] + parts[1]) == "9e7c833dc55dad4e56e909165ea286c56548cc18b651e172a3f9ace4b1ae7606"


def test_a_digest_of_texts_tells_where_one_ends() -> None:
    assert digest_texts(["a", "b"]) != digest_texts(["ab"]) != digest_texts(["b", "a"])


@pytest.mark.real
def test_a_domain_is_assembled_to_the_same_documents_again() -> None:
    tokenizer = Tokenizer.from_file(str(ROOT / "models/smollm2-135m/tokenizer.json"))
    texts = read_speeches(ROOT / ".cache" / "packages")
    [whole] = take_documents(texts, lambda text: len(tokenizer.encode(text).ids), TOKENS_PER_DOMAIN)
    clean = {document["text"] for document in read_documents("", "speeches") if document["meta"]["kind"] == CLEAN}
    again = add_dirt(whole, ["Eine Meldung."])
    assert {text for _, text, kind in again if kind == CLEAN} == clean


def read_documents(folder: str, domain: str) -> list[dict[str, Any]]:
    path = ROOT / "samples" / "demo" / f"{folder}{domain}.jsonl.zst"
    return [json.loads(line) for line in zstandard.decompress(path.read_bytes()).decode().splitlines()]
