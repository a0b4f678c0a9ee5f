"""How fast this machine prepares, measured on a sample."""

from __future__ import annotations

import time

from miniplm.config.run import CorpusConfig
from miniplm.corpus.assembly import SplitAssembly
from miniplm.corpus.encoding import EncodedDocuments, EncodingRules, encode_parts
from miniplm.corpus.encoding_processes import count_processes
from miniplm.corpus.packing import SentenceEnds
from miniplm.layout import SPLITS
from miniplm.sources.parts import SourcePart
from miniplm.tokenizers.encoders import LibraryEncoder, encode_documents, make_encoder
from miniplm.tokenizers.tokenizer import CorpusTokenizer


class SampledWork:
    """What a process does of a preparation, done to a sample of it and timed.

    The first half of the sample is not timed: in it words are new that a preparation has known for hours.
    """

    def __init__(self, tokenizer: CorpusTokenizer, config: CorpusConfig) -> None:
        self._tokenizer = tokenizer
        self._rules = EncodingRules(config.seed, config.splits, dict.fromkeys(SPLITS, 0))
        self._encoder = None if tokenizer.backend is None else make_encoder(tokenizer.backend, config.encoder)
        self._config = config
        self._timed: list[tuple[int, float]] = []
        self._encoded: list[EncodedDocuments] = []

    def encode(self, part: SourcePart) -> int:
        """The tokens of a part, each document's EOS included."""
        encoder, name = self._encoder, self._tokenizer.entry.name
        started = time.perf_counter()
        encoded = encode_parts(
            [part],
            self._rules,
            self._tokenizer.encode_documents if encoder is None else lambda texts: encode_documents(encoder, texts, name),
        )
        self._encoded.append(encoded)
        num_tokens = len(encoded.token_ids) + len(encoded.document_ids)
        self._timed.append((num_tokens, time.perf_counter() - started))
        return num_tokens

    def rate(self, num_bytes: int) -> float:
        """Tokens a second of a preparation of so many bytes of records, by all its processes."""
        timed = self._timed[len(self._timed) // 2 :]
        rate = sum(num_tokens for num_tokens, _ in timed) / max(1e-9, sum(seconds for _, seconds in timed))
        if self._encoder is None or isinstance(self._encoder, LibraryEncoder):
            return rate  # of all cores, which the library used for the sample; others use one
        return rate * max(1, count_processes(self._tokenizer, num_bytes))

    def measure_packing(self) -> float:
        """Tokens a second that one process packs of what others have tokenised; the time to write shards, which a thread does meanwhile, is not in it."""
        entry = self._tokenizer.entry
        assembly = SplitAssembly(
            "candidate",
            SentenceEnds(self._tokenizer),
            entry.vocab_size,
            entry.eos_token_id,
            self._config.sequence_length,
            self._config.sequences_per_shard,
            lambda assembly, shard: None,
        )
        started = time.perf_counter()
        for encoded in self._encoded:
            start = 0
            for document_id, domain, num_tokens in zip(encoded.document_ids, encoded.domains, encoded.num_tokens, strict=True):
                assembly.add_document(document_id, domain, 0, encoded.token_ids[start : start + num_tokens])
                start += num_tokens
        return sum(num_tokens for num_tokens, _ in self._timed) / max(1e-9, time.perf_counter() - started)
