"""Sequences encoded anew for another tokenizer: every byte kept, borders kept, packed anew, the same whatever happened before."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from miniplm import layout
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.derived import sets
from miniplm.derived.conversion import ConversionJob, describe_conversion
from miniplm.derived.fragments import TokenBytes, count_completing_bytes
from miniplm.derived.reader import load_derived_tokenizer, read_derived_shard
from miniplm.derived.recipes import DerivedManifest
from miniplm.derived.sequences import TrainingShard
from miniplm.derived.sets import make_set
from miniplm.errors import DerivedError
from miniplm.records.manifests import CorpusManifest
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer
from miniplm.training.needs import plan_heldout
from scripts.demo_corpus import EOS as OWN_EOS
from tests.miniplm.corpus_fixtures import EOS, TRAINING_TEXT, make_config, read_tree, save_tokenizer, write_jsonl
from tests.tiny_runs import make_tokenizer

DOMAINS = ("web", "code", "books")
# No sentence end in it, and three or four bytes a character: cuts are made by force, inside characters.
WIDE = "日本語の文章中文字符串😀🎉漢字仮名交じり文"


def make_records(num: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    records = []
    for _ in range(num):
        parts = rng.choices([*TRAINING_TEXT, WIDE, WIDE, f" {EOS} and {OWN_EOS} are text here. "], k=rng.randint(1, 3))
        text = "".join("".join(rng.choices(part, k=20)) if part == WIDE else part[: rng.randint(5, 60)] for part in parts)
        records.append({"text": f"{text} {rng.random()}", "domain": rng.choice(DOMAINS)})
    return records


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The corpus' tokenizer and the student's own."""
    folder = tmp_path_factory.mktemp("tokenizers")
    make_tokenizer(folder / "own", [{"text": "the quick brown fox jumps over the lazy dog. " * 5}], vocab_size=300)
    return save_tokenizer(folder / "corpus"), str(folder / "own")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "data"))


def prepare(storage: Storage, folder: Path, tokenizer: str, records: list[dict[str, str]], **settings: Any) -> CorpusManifest:
    source = write_jsonl(folder / "source.jsonl", records)
    return prepare_corpus(storage, make_config(tokenizer, {"path": str(source), "domain": "domain"}, **settings))


def make_job(corpus: CorpusManifest, own: CorpusTokenizer, chosen: Sequence[Sequence[int]]) -> ConversionJob:
    """A conversion of these rows of each candidate shard."""

    def list_shards(storage: Storage) -> list[TrainingShard]:
        shards = []
        for shard, rows in zip(corpus.split_shards("candidate"), chosen, strict=True):
            num_tokens = read_shard(storage, shard)["num_tokens"].to_numpy()
            shards.append(TrainingShard(shard, len(rows), int(num_tokens[list(rows)].sum()), partial(np.array, rows, np.int64)))
        return shards

    recipe = describe_conversion(corpus, {"rows": [list(rows) for rows in chosen]}, own, corpus.sequence_length)
    return ConversionJob(corpus=corpus, conversion=recipe, own=own, list_shards=list_shards, name="encode")


def list_rows(storage: Storage, shards: Sequence[Any], read: Any) -> list[dict[str, Any]]:
    return [row for shard in shards for row in read(storage, shard).to_pylist()]


def texts_by_domain(storage: Storage, manifest: DerivedManifest, own: CorpusTokenizer) -> dict[str, str]:
    """The text of a converted set without its borders."""
    token_ids: dict[str, list[int]] = defaultdict(list)
    for row in list_rows(storage, manifest.shards, read_derived_shard):
        token_ids[row["domain"]] += [token_id for token_id in row["token_ids"] if token_id != own.eos_token_id]
    return {domain: own.decode(ids) for domain, ids in token_ids.items()}


def test_the_whole_heldout_split_is_what_preparing_it_with_the_own_tokenizer_gives(
    storage: Storage, tmp_path: Path, tokenizers: tuple[str, str]
) -> None:
    records = make_records(60)
    settings = {"splits": {"reference": 0, "heldout": 0.98}, "sequences_per_shard": 10_000, "sequence_length": 24}
    corpus = prepare(storage, tmp_path, tokenizers[0], records, **settings)
    other = prepare(storage, tmp_path, tokenizers[1], records, **settings)
    own = load_tokenizer(tokenizers[1])
    manifest = make_set(storage, plan_heldout(corpus, own))
    expected, found = defaultdict(list), defaultdict(list)
    for row in list_rows(storage, other.split_shards("heldout"), read_shard):
        expected[row["domain"]].append((row["token_ids"], row["document_ids"]))
    for row in list_rows(storage, manifest.shards, read_derived_shard):
        found[row["domain"]].append((row["token_ids"], row["document_ids"]))
    assert found == expected
    assert manifest.domains == other.domains["heldout"]
    num_documents = sum(counts.num_documents for counts in corpus.domains["heldout"].values())
    assert manifest.counts["borders_kept"] == num_documents == manifest.counts["borders_added"] + num_documents
    assert manifest.counts["replaced_bytes"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_every_byte_of_the_chosen_text_is_kept(storage: Storage, tmp_path: Path, tokenizers: tuple[str, str], seed: int) -> None:
    corpus = prepare(storage, tmp_path, tokenizers[0], make_records(50, seed), sequence_length=16, sequences_per_shard=7)
    shards = corpus.split_shards("candidate")
    rng = random.Random(seed)
    share = (1.0, 0.9, 0.6, 0.3)[seed]
    chosen = [[row for row in range(shard.num_sequences) if rng.random() < share] for shard in shards]
    own = load_tokenizer(tokenizers[1])
    manifest = make_set(storage, make_job(corpus, own, chosen))

    # The oracle: bytes of each token by the alphabet of transformers, chains of chosen neighbours of one domain over all shards.
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    source = load_tokenizer(tokenizers[0])
    names = {token_id: token for token, token_id in source.tokenizer.get_vocab().items()}
    rows = list_rows(storage, shards, read_shard)
    is_chosen = [row in picked for shard, picked in zip(shards, chosen, strict=True) for row in range(shard.num_sequences)]
    shard_of = [shard.shard_index for shard in shards for _ in range(shard.num_sequences)]
    text, expected = defaultdict(str), Counter({"borders_kept": 0, "borders_added": 0, "replaced_bytes": 0, "text_bytes": 0})
    for domain in DOMAINS:
        chain, last_shard, has_text = b"", 0, False
        for index in [*(index for index, row in enumerate(rows) if row["domain"] == domain), None]:
            if index is None or not is_chosen[index]:
                text[domain] += chain.decode("utf-8", "replace")
                expected["replaced_bytes"] += len(chain) - len(chain.decode("utf-8", "ignore").encode())
                expected["borders_added"] += has_text
                chain, has_text = b"", False
                continue
            if has_text and shard_of[index] != last_shard:
                expected["borders_added"] += 1
                has_text = False
            last_shard = shard_of[index]
            for token_id in rows[index]["token_ids"]:
                if token_id == source.eos_token_id:
                    expected["borders_kept"] += has_text
                    has_text = False
                else:
                    chain += bytes(byte_of[character] for character in names[token_id])
                    expected["text_bytes"] += len(names[token_id])
                    has_text = True
    assert texts_by_domain(storage, manifest, own) == {domain: content for domain, content in text.items() if content}
    assert (expected["replaced_bytes"] > 0) == (seed > 0), "the texts are cut inside characters, or this test sees nothing"
    assert len(manifest.shards) > 3
    assert {key: manifest.counts[key] for key in ("replaced_bytes", "text_bytes")} == {
        key: expected[key] for key in ("replaced_bytes", "text_bytes")
    }
    found = {key: manifest.counts[key] for key in ("borders_kept", "borders_added")}
    # A border between two shards is none where all that follows of a character was taken by the shard before.
    assert found["borders_kept"] == expected["borders_kept"]
    assert found["borders_added"] == expected["borders_added"]
    eos = sum(row["token_ids"].count(own.eos_token_id) for row in list_rows(storage, manifest.shards, read_derived_shard))
    assert eos == found["borders_kept"] + found["borders_added"], "the text of a special token became a border"
    source_eos = sum(row["token_ids"].count(source.eos_token_id) for row, is_in in zip(rows, is_chosen, strict=True) if is_in)
    assert source_eos == found["borders_kept"] + manifest.counts["borders_empty"]


def test_sequences_are_full_and_their_counts_add_up(storage: Storage, tmp_path: Path, tokenizers: tuple[str, str]) -> None:
    corpus = prepare(storage, tmp_path, tokenizers[0], make_records(50), sequence_length=16, sequences_per_shard=20)
    own = load_tokenizer(tokenizers[1])
    chosen = [list(range(0, shard.num_sequences, 2)) for shard in corpus.split_shards("candidate")]
    manifest = make_set(storage, make_job(corpus, own, chosen))
    for shard in manifest.shards:
        table = read_derived_shard(storage, shard)
        lengths = [len(token_ids) for token_ids in read_token_ids(table)]
        assert max(lengths) <= 17
        assert lengths == table["num_tokens"].to_pylist()
        assert (shard.num_sequences, shard.num_tokens) == (len(lengths), sum(lengths))
        assert shard.num_tokens == sum(counts.num_tokens for counts in shard.domains.values())
        assert Counter(table["domain"].to_pylist()) == {domain: counts.num_sequences for domain, counts in shard.domains.items()}
        assert [part.num_sequences for part in shard.sources] == [len(chosen[shard.shard_index])]
    ids = [row["sequence_id"] for row in list_rows(storage, manifest.shards, read_derived_shard)]
    assert all(first < second for first, second in pairwise(ids))
    assert load_derived_tokenizer(storage, manifest.derived_id).entry.digest == own.entry.digest


def test_a_set_is_made_once_and_only_what_is_broken_is_made_again(
    storage: Storage, tmp_path: Path, tokenizers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = prepare(storage, tmp_path, tokenizers[0], make_records(30), sequence_length=16, sequences_per_shard=12)
    job = plan_job(corpus, tokenizers[1])
    other = Storage(str(tmp_path / "undisturbed"))
    storage.filesystem.cp(storage.path(""), other.path(""), recursive=True)
    make_set(other, job)
    whole = read_tree(other, layout.derived_folder(job.derived_id))

    class KilledError(Exception):
        pass

    made: list[int] = []
    is_killed = True
    write = sets.OpenShard.write

    def count_and_write(self: Any, path: Path, first_sequence_id: int) -> None:
        made.append(first_sequence_id >> 32)
        write(self, path, first_sequence_id)
        if is_killed and len(made) == 2:
            raise KilledError

    monkeypatch.setattr(sets.OpenShard, "write", count_and_write)
    with pytest.raises(KilledError):
        make_set(storage, job)
    is_killed = False
    manifest = make_set(storage, job)
    assert made == [0, 1, *range(1, len(manifest.shards))]
    assert read_tree(storage, layout.derived_folder(job.derived_id)) == whole
    made.clear()
    # Another run that comes to the same recipe finds it.
    assert make_set(storage, plan_job(corpus, tokenizers[1])) == manifest
    assert made == []
    path = Path(storage.path(layout.derived_shard(job.derived_id, 1)))
    path.write_bytes(path.read_bytes()[:-1])
    Path(storage.path(layout.derived_shard_manifest(job.derived_id, 2))).write_text("{")
    with pytest.raises(DerivedError, match=r"shard 1 of derived set conversion-\w+ is damaged.*miniplm train CONFIG"):
        read_derived_shard(storage, manifest.shards[1])
    make_set(storage, job)
    assert made == [1, 2]
    assert read_tree(storage, layout.derived_folder(job.derived_id)) == whole


def plan_job(corpus: CorpusManifest, own: str) -> ConversionJob:
    chosen = [list(range(shard.num_sequences)) for shard in corpus.split_shards("candidate")]
    return make_job(corpus, load_tokenizer(own), chosen)


def test_recipes_tell_apart_what_is_converted_and_how(tmp_path: Path, storage: Storage, tokenizers: tuple[str, str]) -> None:
    corpus = prepare(storage, tmp_path, tokenizers[0], make_records(10))
    own = load_tokenizer(tokenizers[1])
    make_tokenizer(tmp_path / "third", [{"text": "other words " * 9}], vocab_size=280)
    ids = [
        describe_conversion(corpus, {"a": 1}, own, 8).derived_id,
        describe_conversion(corpus, {"a": 2}, own, 8).derived_id,
        describe_conversion(corpus, {"a": 1}, load_tokenizer(str(tmp_path / "third")), 8).derived_id,
        describe_conversion(corpus, {"a": 1}, own, 9).derived_id,
    ]
    assert len(set(ids)) == 4
    assert describe_conversion(corpus, {"a": 1}, load_tokenizer(tokenizers[1]), 8).derived_id == ids[0]


@pytest.mark.parametrize(
    ("tail", "head", "num"),
    [
        ("日".encode()[:1], "日".encode()[1:] + b"x", 2),
        ("日".encode()[:2], "日".encode()[2:], 1),
        (b"x" + "😀".encode()[:1], "😀".encode()[1:], 3),
        (b"x", b"\x80", 0),
        ("日".encode(), b"\x80", 0),
        ("日".encode()[:1], b"\x97x", 0),
        (b"", b"\x80", 0),
        (b"\x80\x80\x80\x80", b"\x80", 0),
    ],
)
def test_bytes_that_complete_a_character(tail: bytes, head: bytes, num: int) -> None:
    assert count_completing_bytes(tail, head) == num


def test_a_tokenizer_that_is_not_byte_level_gives_its_decoded_text(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordPiece({EOS: 0, "[UNK]": 1, "one": 2, "##s": 3, "two": 4}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS).save_pretrained(str(tmp_path))
    tokenizer = load_tokenizer(str(tmp_path))
    token_bytes = TokenBytes(tokenizer)
    assert not token_bytes.is_exact
    content = token_bytes.join(tokenizer.encode_documents(["ones  two"])[0])
    assert token_bytes.decode(content) == ("ones two", 0)


@pytest.mark.real
def test_real_text_of_a_real_tokenizer_comes_back_byte_by_byte(
    storage: Storage, tmp_path: Path, tokenizers: tuple[str, str]
) -> None:
    texts = [json.loads(line)["text"][:700] for line in read_demo_lines()] + [WIDE * 8 + f"{EOS}<|endoftext|><|im_start|>"]
    records = [{"text": text, "domain": DOMAINS[index % 3]} for index, text in enumerate(texts)]
    corpus = prepare(storage, tmp_path, "models/smollm2-135m", records, sequence_length=32, sequences_per_shard=40)
    own = load_tokenizer(tokenizers[1])
    manifest = make_set(storage, plan_job(corpus, tokenizers[1]))
    expected = {domain: "".join(record["text"] for record in records if record["domain"] == domain) for domain in DOMAINS}
    assert texts_by_domain(storage, manifest, own) == expected
    assert manifest.counts["replaced_bytes"] == 0
    assert manifest.counts["text_bytes"] == sum(len(text.encode()) for text in texts)


def read_demo_lines() -> list[str]:
    import zstandard

    file = sorted(Path("samples/demo").glob("*.jsonl.zst"))[0]
    return zstandard.ZstdDecompressor().stream_reader(file.open("rb")).read(400_000).decode("utf-8", "ignore").splitlines()[:12]


def test_text_of_a_tokenizer_with_byte_fallback_is_kept_where_it_is_cut(
    storage: Storage, tmp_path: Path, tokenizers: tuple[str, str]
) -> None:
    vocabulary = {"<unk>": 0, EOS: 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    vocabulary |= {letter: 258 + at for at, letter in enumerate(["▁", "a", "b", "."])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_tokens([AddedToken("café", normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, unk_token="<unk>").save_pretrained(str(tmp_path / "llama"))
    rng = random.Random(0)
    records = [
        {"text": "".join(rng.choices(["a", " ", "b", ". ", "café", "日"], k=rng.randint(5, 40))), "domain": rng.choice(DOMAINS)}
        for _ in range(30)
    ]
    corpus = prepare(storage, tmp_path, str(tmp_path / "llama"), records, sequence_length=9, sequences_per_shard=20)
    own = load_tokenizer(tokenizers[1])
    shards = corpus.split_shards("candidate")
    manifest = make_set(storage, make_job(corpus, own, [range(shard.num_sequences) for shard in shards]))
    expected = {domain: "".join(record["text"] for record in records if record["domain"] == domain) for domain in DOMAINS}
    # A shard's border is a border of texts too, at which no space may be lost.
    assert len(manifest.shards) > 2
    assert texts_by_domain(storage, manifest, own) == {domain: text for domain, text in expected.items() if text}
    assert (manifest.counts["replaced_bytes"], manifest.counts["unknown_tokens"]) == (0, 0)
    assert manifest.counts["text_bytes"] == sum(len(record["text"].encode()) for record in records)
