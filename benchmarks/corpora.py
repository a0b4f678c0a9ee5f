"""What corpora of made-up content have in common."""

from __future__ import annotations

from miniplm.records.manifests import CorpusManifest, ShardEntry, TokenizerEntry


def name_tokenizer(vocab_size: int) -> TokenizerEntry:
    """The entry of a tokenizer that there is none of."""
    return TokenizerEntry(name="none", digest="sha256:none", vocab_size=vocab_size, eos_token="<eos>", eos_token_id=0)


def describe_corpus(corpus_id: str, tokenizer: TokenizerEntry, length: int, shards: tuple[ShardEntry, ...]) -> CorpusManifest:
    """The manifest of a corpus with these shards, of sequences of `length` targets."""
    num_sequences = sum(shard.num_sequences for shard in shards)
    return CorpusManifest(
        corpus_id=corpus_id, tokenizer=tokenizer, sequence_length=length, sources=(), num_records=num_sequences, rejected={},
        domains={"candidate": {}}, shards=shards, versions={},
    )  # fmt: skip
