"""The tokenizer of a corpus: texts to token ids on all cores, without EOS or BOS, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.artifacts import TokenizerEntry
from miniplm.errors import TokenizerError, list_offenders
from miniplm.text_pieces import PIECE_CHARACTERS, cut_text

TokenIds = NDArray[np.uint32]

# Characters given to the Rust backend in one call: its results take some 30 bytes a character while they live.
_CALL_CHARACTERS = 4 << 20
_WANTED = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"]


class CorpusTokenizer:
    """A tokenizer with its end-of-document token.

    `tokenizer` is the transformers tokenizer, `entry` its record for manifests. A special token's text inside
    a document is encoded like any other text, so that only real document ends are EOS; a model whose ordinary
    vocabulary holds that text as one word (a plain WordLevel) has no other id for it, and a document end there.
    """

    def __init__(self, tokenizer: Any, entry: TokenizerEntry) -> None:
        self.tokenizer = tokenizer
        self.entry = entry
        self.eos_token_id = entry.eos_token_id
        self._backend = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None

    def encode_documents(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of each text, neither EOS nor BOS added, nothing truncated; a very long text is encoded in pieces."""
        results: list[list[TokenIds]] = [[] for _ in texts]
        for call in _group_calls(self._cut_pieces(texts)):
            for (index, _), token_ids in zip(call, self._encode_call([piece for _, piece in call]), strict=True):
                results[index].append(token_ids)
        return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in results]

    def decode(self, token_ids: Sequence[int] | NDArray[Any]) -> str:
        """The text of token ids, special tokens included, nothing cleaned up."""
        ids = [int(token_id) for token_id in token_ids]
        if self._backend is not None:
            return str(self._backend.decode(ids, skip_special_tokens=False))
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decode_vocabulary(self) -> list[str]:
        """The text of every id alone, in id order, `entry.vocab_size` of them; empty for an id that is not in use."""
        if self._backend is not None:
            return list(self._backend.decode_batch([[i] for i in range(self.entry.vocab_size)], skip_special_tokens=False))
        used = set(self.tokenizer.get_vocab().values())
        return [self.decode([token_id]) if token_id in used else "" for token_id in range(self.entry.vocab_size)]

    def save(self, folder: Path) -> None:
        """Writes a folder that `AutoTokenizer.from_pretrained` reads."""
        self.tokenizer.save_pretrained(str(folder))

    @cached_property
    def encoding_digest(self) -> str:
        """A digest of all that decides the token ids of a text: vocabulary, merges, normalisation, splitting rules."""
        if self._backend is None:
            return f"{type(self.tokenizer).__name__}:{self.entry.digest}"
        content = json.loads(self._backend.to_str())
        for key in ("version", "truncation", "padding", "post_processor"):
            content.pop(key, None)
        return f"sha256:{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}"

    def _cut_pieces(self, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
        for index, text in enumerate(texts):
            if len(text) <= PIECE_CHARACTERS:
                yield index, text
            else:
                yield from ((index, piece) for piece in cut_text(text, lambda part: self._encode_call([part])[0].tolist()))

    def _encode_call(self, texts: list[str]) -> list[TokenIds]:
        if self._backend is None:
            batch = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True, truncation=False, padding=False)
            return [np.asarray(ids, dtype=np.uint32) for ids in batch["input_ids"]]
        # Set anew each time: a call of the transformers tokenizer in between sets them back.
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]


def load_tokenizer(
    name: str, eos_token: str | None = None, trust_remote_code: bool = False, field: str = "corpus.eos_token"
) -> CorpusTokenizer:
    """The tokenizer of a folder or hub id, with `eos_token` as the document separator, or its own EOS token for None.

    `field` is where a configuration names the separator.

    Raises `TokenizerError` where there is no such folder, the hub does not give it, its files are damaged, or the
    separator is missing.
    """
    from transformers import AutoTokenizer

    folder = _locate_tokenizer(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # the loader and its Rust backend raise anything from OSError to a bare Exception
        raise TokenizerError(
            f"{folder} holds no tokenizer that can be loaded ({_first_line(error)}); "
            "it needs a tokenizer.json, as `save_pretrained` of a transformers tokenizer writes it"
        ) from error
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if not vocabulary:
        raise TokenizerError(f"the tokenizer of {folder} has an empty vocabulary; copy its files again")
    if eos_token is None:
        eos_token = tokenizer.eos_token
        if eos_token is None:
            raise TokenizerError(
                f"tokenizer {name!r} has no EOS token, and documents must be separated by one; "
                f"name it as `{field}`, one of its vocabulary{_suggest_separators(tokenizer)}"
            )
    eos_token = str(eos_token)
    if eos_token not in vocabulary:
        raise TokenizerError(
            f"eos_token {eos_token!r} is not in the vocabulary of tokenizer {name!r} ({len(vocabulary):,} tokens); "
            f"give `{field}` a token that it has{_suggest_separators(tokenizer)}"
        )
    _mark_special(tokenizer, eos_token)
    entry = TokenizerEntry(
        name=name,
        digest=vocabulary_digest(tokenizer),
        vocab_size=max(vocabulary.values()) + 1,
        eos_token=eos_token,
        eos_token_id=vocabulary[eos_token],
    )
    return CorpusTokenizer(tokenizer, entry)


def vocabulary_digest(tokenizer: Any) -> str:
    """A digest of every token with its id, of a transformers tokenizer: equal where two models share their vocabulary."""
    sha = hashlib.sha256()
    for token, token_id in sorted(tokenizer.get_vocab().items()):
        sha.update(f"{json.dumps(token)}:{token_id}\n".encode())
    return f"sha256:{sha.hexdigest()}"


def _locate_tokenizer(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise TokenizerError(f"tokenizer {name!r} is a file; give the folder that holds it")
    if name.count("/") > 1 or "\\" in name or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise TokenizerError(f"there is no tokenizer folder {name!r} (looked from {Path.cwd()}); give a folder or a hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED))
    except Exception as error:  # the hub client raises a family of errors; each means that the files cannot be had
        raise TokenizerError(
            f"tokenizer {name!r} is neither a folder (looked from {Path.cwd()}) nor could it be had from the hub "
            f"({_first_line(error)}); give the folder of a tokenizer, or check the id and the connection"
        ) from error


def _mark_special(tokenizer: Any, eos_token: str) -> None:
    """Makes the separator the tokenizer's EOS, and its text inside a document ordinary text, as for any special token."""
    tokenizer.eos_token = eos_token
    if getattr(tokenizer, "is_fast", False):
        from tokenizers import AddedToken

        backend = tokenizer.backend_tokenizer
        for token_id, token in backend.get_added_tokens_decoder().items():
            if token.content == eos_token and not token.special:
                backend.add_special_tokens([AddedToken(eos_token, special=True, normalized=False)])
                assert backend.token_to_id(eos_token) == token_id, "marking a token as special must not give it a new id"


def _group_calls(pieces: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    call: list[tuple[int, str]] = []
    num_characters = 0
    for piece in pieces:
        call.append(piece)
        num_characters += len(piece[1])
        if num_characters >= _CALL_CHARACTERS:
            yield call
            call, num_characters = [], 0
    if call:
        yield call


def _suggest_separators(tokenizer: Any) -> str:
    tokens = sorted(tokenizer.all_special_tokens)
    if not tokens and getattr(tokenizer, "is_fast", False):
        tokens = sorted(token.content for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values())
    return f", e.g. {list_offenders(tokens)}" if tokens else ""


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
