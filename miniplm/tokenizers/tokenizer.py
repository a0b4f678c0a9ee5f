"""The tokenizer of a corpus: texts to token ids, without EOS or BOS, and back."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.config.run import EncoderName
from miniplm.cores import count_cores
from miniplm.errors import ConfigError, TokenizerError, list_offenders
from miniplm.models.locations import locate_tokenizer
from miniplm.records.manifests import Record, TokenizerEntry
from miniplm.storage.root import digest_content
from miniplm.tokenizers.encoders import Encode, LibraryEncoder, TokenIds, encode_documents, make_encoder
from miniplm.tokenizers.folders import (
    TokenizerFolder,
    describe_rules,
    digest_files,
    list_named_extras,
    read_tokenizer,
)
from miniplm.tokenizers.token_texts import TokenTexts, list_text_changes

__all__ = ["CorpusTokenizer", "TokenIds", "TokenizerIdentity", "load_tokenizer", "vocabulary_digest"]

# With more cores than that the library's threads are faster than one that remembers words (measured on two: 1.7 MB/s a core against 12).
_FEW_CORES = 6
# The name of a class that old and new versions of transformers know, and that reads tokenizer.json as it is.
_PLAIN_CLASS = "PreTrainedTokenizerFast"


class TokenizerIdentity(Record):
    """A tokenizer's record, and a digest of all that decides the token ids of a text: what the id of a corpus is made of."""

    entry: TokenizerEntry
    encoding_digest: str


class _Tables:
    """What is made of a vocabulary once, for all records of its tokenizer: with 150,000 tokens it takes a second."""

    def __init__(self, backend: Any, eos_token_id: int) -> None:
        self._backend = backend
        self._eos_token_id = eos_token_id

    @cached_property
    def texts(self) -> TokenTexts:
        return TokenTexts(self._backend, self._eos_token_id)

    @cached_property
    def encoding_digest(self) -> str:
        content = json.loads(self._backend.to_str())
        for key in ("version", "truncation", "padding", "post_processor"):
            content.pop(key, None)
        return f"sha256:{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}"


class CorpusTokenizer:
    """A tokenizer with its end-of-document token.

    `backend` is the Rust tokenizer, as tokenizer.json says, None where there is only one in Python; `entry` is its record for manifests.
    A special token's text inside a document is encoded like any other text, so that only real document ends are EOS; a model whose
    ordinary vocabulary holds that text as one word (a plain WordLevel) has no other id for it, and a document end there.
    """

    def __init__(self, source: TokenizerFolder, entry: TokenizerEntry, tables: _Tables | None = None) -> None:
        self._source = source
        self.backend = source.backend
        self.entry = entry
        self.eos_token_id = entry.eos_token_id
        self._tables = tables or _Tables(source.backend, entry.eos_token_id)

    def with_entry(self, entry: TokenizerEntry) -> CorpusTokenizer:
        """The same tokenizer under the record that a manifest has of it."""
        return CorpusTokenizer(self._source, entry, self._tables)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer as transformers knows it, a copy with the same ids."""
        if self.backend is None:
            return self._source.python
        from transformers import PreTrainedTokenizerFast

        settings = self._source.settings
        return PreTrainedTokenizerFast(
            tokenizer_object=self.backend,
            clean_up_tokenization_spaces=False,
            **settings.others,
            **_list_names_in(self.backend, settings.names),
            eos_token=self.entry.eos_token,
        )

    def encode_documents(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids (num_tokens,) uint32 of each text, neither EOS nor BOS added, nothing truncated; a very long text goes in pieces."""
        return encode_documents(self._encode, texts, self.entry.name)

    def choose_encoder(self, library: EncoderName) -> Callable[[Sequence[str]], list[TokenIds]]:
        """As `encode_documents`, by a library. Raises `ConfigError` where that cannot take this tokenizer."""
        if library == "tokenizers":
            return self.encode_documents
        if self.backend is None:
            raise ConfigError(
                f"corpus.encoder: {library} needs a tokenizer.json, which {self.entry.name!r} has not; leave corpus.encoder out"
            )
        encode = make_encoder(self.backend, library)
        return lambda texts: encode_documents(encode, texts, self.entry.name)

    @cached_property
    def _encode(self) -> Encode:
        if self.backend is None:
            return self._encode_by_python
        return make_encoder(self.backend) if count_cores() <= _FEW_CORES else LibraryEncoder(self.backend)

    @cached_property
    def reads_separator_in_text(self) -> bool:
        """Whether the separator's text inside a document becomes the separator: the model's own vocabulary has it as a word."""
        try:
            return self.eos_token_id in self.encode_documents([self.entry.eos_token])[0]
        except TokenizerError:  # a text that has no ids becomes no separator
            return False

    def decode(self, token_ids: Sequence[int] | NDArray[Any]) -> str:
        """The text of token ids (num_tokens,), special tokens included, nothing cleaned up; U+FFFD stands for what is no whole character."""
        ids = [int(token_id) for token_id in token_ids]
        if self.texts is not None:
            return self.texts.join(ids).decode("utf-8", "replace")
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @property
    def texts(self) -> TokenTexts | None:
        """The bytes of each token, None for a tokenizer in Python."""
        return None if self.backend is None else self._tables.texts

    def list_text_changes(self) -> list[str]:
        """What keeps the text of token ids from being the text that was encoded, in words (`miniplm.tokenizers.token_texts`)."""
        return ["it is a Python class, whose decoder may change text"] if self.backend is None else list_text_changes(self.backend)

    def decode_vocabulary(self) -> list[str]:
        """The text of every id alone, in id order, `entry.vocab_size` of them; empty for an id that is not in use."""
        if self.texts is not None and not self.texts.is_exact:
            return list(self.backend.decode_batch([[i] for i in range(self.entry.vocab_size)], skip_special_tokens=False))
        used = set(self.vocabulary.values())
        return [self.decode([token_id]) if token_id in used else "" for token_id in range(self.entry.vocab_size)]

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token with its id."""
        return dict(self._source.tokenizer.get_vocab())

    def save(self, folder: Path) -> None:
        """Writes a folder that `AutoTokenizer.from_pretrained` reads, with the tokenizer.json that these ids are of."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(str(folder))
        if self.backend is not None:
            # Over the file that transformers wrote, which is what its class makes of it.
            self.backend.save(str(folder / "tokenizer.json"))
            path = folder / "tokenizer_config.json"
            settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": _PLAIN_CLASS}
            path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")

    @cached_property
    def full_entry(self) -> TokenizerEntry:
        """The record with the digest of the rules, which takes a while to make."""
        rules = self.encoding_digest if self.backend is None else digest_content(describe_rules(self.backend), length=16)
        return self.entry.model_copy(update={"rules": rules})

    @property
    def identity(self) -> TokenizerIdentity:
        """What names corpora that are made with it."""
        return TokenizerIdentity(entry=self.entry, encoding_digest=self.encoding_digest)

    @property
    def encoding_digest(self) -> str:
        """A digest of all that decides the token ids of a text: vocabulary, merges, normalisation, splitting rules."""
        if self.backend is None:
            return f"{type(self.tokenizer).__name__}:{self.entry.digest}"
        return self._tables.encoding_digest

    def _encode_by_python(self, texts: list[str]) -> list[TokenIds]:  # (num_tokens,) each
        batch = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True, truncation=False, padding=False)
        return [np.asarray(ids, dtype=np.uint32) for ids in batch["input_ids"]]


def load_tokenizer(
    name: str,
    eos_token: str | None = None,
    trust_remote_code: bool = False,
    field: str = "corpus.eos_token",
    is_separator_known: bool = False,
    only_decodes: bool = False,
) -> CorpusTokenizer:
    """The tokenizer of a folder or hub id, with `eos_token` as the document separator, or its own EOS token for None.

    `field` is where a configuration names the separator. `is_separator_known`: another folder names it, so that this one need not.
    `only_decodes`: the tokenizer is to turn ids into text and will not be saved.

    Raises `TokenizerError` where there is no such folder, the hub does not give it, its files are damaged, or the
    separator is missing.
    """
    folder = locate_tokenizer(name)
    if not (folder / "tokenizer.json").is_file():  # a class in Python may read any file
        return _load(folder, name, eos_token, trust_remote_code, field, is_separator_known, only_decodes)
    key = (digest_files(folder), eos_token, trust_remote_code, is_separator_known, only_decodes)
    with _loading:
        loaded = _loaded.pop(key, None)
        if loaded is None:
            loaded = _load(folder, name, eos_token, trust_remote_code, field, is_separator_known, only_decodes)
        _loaded[key] = loaded  # the last one used is the last one here
        if len(_loaded) > _MAX_LOADED:
            del _loaded[next(iter(_loaded))]
    return loaded.with_entry(loaded.entry.model_copy(update={"name": name}))


# The tokenizers that were loaded last, by the digest of their files: one of 150,000 tokens takes a second, and a run asks for its own
# again and again, of other folders that hold copies of it.
_loaded: dict[tuple[str, str | None, bool, bool, bool], CorpusTokenizer] = {}
_MAX_LOADED = 4
_loading = threading.Lock()


def _load(
    folder: Path,
    name: str,
    eos_token: str | None,
    trust_remote_code: bool,
    field: str,
    is_separator_known: bool,
    only_decodes: bool,
) -> CorpusTokenizer:
    source = read_tokenizer(folder, trust_remote_code, with_settings=not only_decodes)
    vocabulary: dict[str, int] = source.tokenizer.get_vocab()
    if not vocabulary:
        raise TokenizerError(f"the tokenizer of {folder} has an empty vocabulary; copy its files again")
    if eos_token is None:
        eos_token = source.settings.names.get("eos_token")
        if eos_token is None:
            raise TokenizerError(
                f"tokenizer {name!r} has no EOS token, and documents must be separated by one; "
                f"name it as `{field}`, one of its vocabulary{_suggest_separators(source)}"
            )
    if eos_token not in vocabulary and source.backend is not None and (folder / "tokenizer.json").is_file():
        _add_separator(source.backend, eos_token, folder, is_separator_known)
        vocabulary = source.tokenizer.get_vocab()
    if eos_token not in vocabulary:
        raise TokenizerError(
            f"eos_token {eos_token!r} is not in the vocabulary of tokenizer {name!r} ({len(vocabulary):,} tokens); "
            f"give `{field}` a token that it has{_suggest_separators(source)}"
        )
    _mark_special(source, eos_token)
    entry = TokenizerEntry(
        name=name,
        digest=vocabulary_digest(source.tokenizer),
        vocab_size=max(vocabulary.values()) + 1,  # not their number: ids may have gaps
        eos_token=eos_token,
        eos_token_id=vocabulary[eos_token],
    )
    return CorpusTokenizer(source, entry)


def vocabulary_digest(tokenizer: Any) -> str:
    """A digest of every token with its id, of a transformers or a Rust tokenizer: equal where two models share their vocabulary."""
    sha = hashlib.sha256()
    for token, token_id in sorted(tokenizer.get_vocab().items()):
        sha.update(f"{json.dumps(token)}:{token_id}\n".encode())
    return f"sha256:{sha.hexdigest()}"


def _list_names_in(backend: Any, names: Mapping[str, str]) -> dict[str, str]:
    """The named tokens that the vocabulary has, EOS aside, unless they are words that are looked for in texts: naming them would change how."""
    words = {token.content for token in backend.get_added_tokens_decoder().values() if not token.special}
    return {
        name: token
        for name, token in names.items()
        if name != "eos_token" and token not in words and backend.token_to_id(token) is not None
    }


def _add_separator(backend: Any, eos_token: str, folder: Path, is_known: bool) -> None:
    """Adds a separator that only the folder's settings name, at the id that they give it; no text is encoded as it."""
    from tokenizers import AddedToken

    extras = list_named_extras(folder, backend.get_vocab())
    if eos_token not in {token for _, token in extras}:
        if is_known:
            backend.add_special_tokens([AddedToken(eos_token, special=True, normalized=False)])
        return
    for token_id, token in extras:
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        if backend.token_to_id(token) != token_id:
            raise TokenizerError(
                f"the settings of tokenizer {folder} give token {token!r} the id {token_id}, which does not follow those of tokenizer.json "
                f"({backend.token_to_id(token)} does); save it again, so that both agree"
            )
        if token == eos_token:
            break


def _mark_special(source: TokenizerFolder, eos_token: str) -> None:
    """Makes the separator's text inside a document ordinary text, as for any special token."""
    if source.backend is None:
        source.python.eos_token = eos_token
        return
    from tokenizers import AddedToken

    for token_id, token in source.backend.get_added_tokens_decoder().items():
        if token.content == eos_token and not token.special:
            source.backend.add_special_tokens([AddedToken(eos_token, special=True, normalized=False)])
            assert source.backend.token_to_id(eos_token) == token_id, "marking a token as special must not give it a new id"


def _suggest_separators(source: TokenizerFolder) -> str:
    tokens = set(source.settings.names.values())
    if source.backend is not None:
        added = source.backend.get_added_tokens_decoder().values()
        tokens = {token.content for token in added if token.special} or {token.content for token in added}
    return f", e.g. {list_offenders(sorted(tokens))}" if tokens else ""
