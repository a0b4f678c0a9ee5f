"""The corpus of experiments: even shares, the least text first, and the same documents for the same texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers

from scripts import experiment_corpus
from scripts.demo_corpus import Domain
from scripts.experiment_corpus import cut_documents, main, make_corpus, take_share


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> Path:
    """One token a word."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def make_texts(name: str, num: int) -> list[tuple[str, str]]:
    """Texts of 200 words (1,200 characters or some more), all different."""
    return [(f"{name}-{index}", f"{name}{index:02d} " + "words " * 199) for index in range(num)]


@pytest.fixture
def three_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    domains = [
        Domain(
            name,
            f"made for a test, {num} texts",
            "none",
            lambda cache, name=name, num=num: iter(make_texts(name, num)),
        )
        for name, num in (("rich", 32), ("poor", 4), ("middle", 22))
    ]
    monkeypatch.setattr(experiment_corpus, "DOMAINS", tuple(domains))
    # A document of 200 tokens each.
    monkeypatch.setattr(experiment_corpus, "HELDOUT_TOKENS", 200)
    monkeypatch.setattr(experiment_corpus, "LABELLED_TOKENS", 200)
    monkeypatch.setattr(experiment_corpus, "read_messages", lambda cache: iter(["Ein Satz, den niemand hier gesucht hat"]))


def read_sources(folder: Path) -> dict[str, int]:
    """Documents by domain, as the files hold them."""
    return {
        path.name.removesuffix(".jsonl.zst"): zstandard.decompress(path.read_bytes()).count(b"\n")
        for path in folder.glob("*.jsonl.zst")
    }


def test_what_a_small_domain_lacks_is_spread_over_the_others(three_domains: None, tmp_path: Path, tokenizer_json: Path) -> None:
    # 4,800 tokens, 1,600 each: poor has 400, the other two share 4,400: 2,200, reached by 11 documents of 200.
    assert make_corpus(tmp_path / "corpus", tmp_path, tokenizer_json, 4_800)
    assert read_sources(tmp_path / "corpus") == {"poor": 2, "middle": 11, "rich": 11}
    assert "| middle | 11 | 2,200 |" in (tmp_path / "corpus" / "SOURCES.md").read_text()


def test_everything_is_taken_without_a_number(three_domains: None, tmp_path: Path, tokenizer_json: Path) -> None:
    make_corpus(tmp_path / "corpus", tmp_path, tokenizer_json, None)
    assert read_sources(tmp_path / "corpus") == {"poor": 2, "middle": 20, "rich": 30}


def test_the_same_request_is_not_made_twice_and_another_replaces_it(
    three_domains: None, tmp_path: Path, tokenizer_json: Path
) -> None:
    folder = tmp_path / "corpus"
    assert make_corpus(folder, tmp_path, tokenizer_json, 1_000)
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert not make_corpus(folder, tmp_path, tokenizer_json, 1_000)
    assert make_corpus(folder, tmp_path, tokenizer_json, 2_000)
    assert make_corpus(folder, tmp_path, tokenizer_json, 1_000)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == first


def test_no_document_is_in_two_parts_and_held_out_text_is_clean(three_domains: None, tmp_path: Path, tokenizer_json: Path) -> None:
    folder = tmp_path / "corpus"
    make_corpus(folder, tmp_path, tokenizer_json, None)
    parts = [folder, folder / "labelled", folder / "heldout"]
    records = [
        [json.loads(line) for path in sorted(part.glob("*.zst")) for line in zstandard.decompress(path.read_bytes()).splitlines()]
        for part in parts
    ]
    assert [len(part) for part in records] == [52, 3, 3]
    sources = [record["meta"]["source"].removeprefix("made of ") for part in records for record in part]
    assert len(set(sources)) == len(sources)
    # Two fifths of 30, of 20 and of 2 documents.
    assert sum(record["meta"]["kind"] != "clean" for record in records[0]) == 12 + 8 + 1
    assert {record["meta"]["kind"] for record in records[2]} == {"clean"}
    assert (folder / "tokenizer" / "tokenizer.json").is_file()


def test_documents_come_in_the_order_of_their_digests_and_no_text_twice() -> None:
    texts = make_texts("a", 6)
    documents = cut_documents(iter([*texts, *reversed(texts)]))
    assert len(documents) == 6
    assert documents == cut_documents(iter(reversed(texts)))
    assert [source for source, _ in documents] != sorted(source for source, _ in documents)


def test_a_share_ends_with_the_document_that_reaches_it(tokenizer_json: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    documents = cut_documents(iter(make_texts("a", 6)))
    assert take_share(documents, tokenizer, 400) == (documents[:2], 400)
    assert take_share(documents, tokenizer, 401) == (documents[:3], 600)
    assert take_share(documents, tokenizer, 5_000) == (documents, 1_200)


def test_the_text_is_named_by_a_digest_of_what_it_says(three_domains: None, tmp_path: Path, tokenizer_json: Path) -> None:
    def find_digest(folder: str, num_tokens: int) -> str:
        make_corpus(tmp_path / folder, tmp_path, tokenizer_json, num_tokens)
        [line] = [line for line in (tmp_path / folder / "SOURCES.md").read_text().splitlines() if line.startswith("text: ")]
        return line

    assert find_digest("one", 1_000) == find_digest("other", 1_000) != find_digest("larger", 2_000)


def test_a_missing_tokenizer_is_told_with_the_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--tokenizer", str(tmp_path / "none.json")])
    assert "`make assets` fetches it" in capsys.readouterr().err


def test_no_tokens_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--tokens", "0"])
    assert "--tokens is 0; it must be at least 1" in capsys.readouterr().err
