"""Texts to token ids by gigatoken, several times as fast as words that are remembered, and held against the tokenizers library all along.

Up to 0.10.0 its memory grows with the text (its issue 36), and it is refused; on some texts it gives other ids (its issue 35), so a piece of every
batch is encoded by both.
"""

from __future__ import annotations

import json
from importlib.metadata import packages_distributions, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.errors import ConfigError, TokenizerError, describe_reason

# What a process may remember.
_MOST_CACHE_BYTES = 256 << 20
# Of each call: about 4 bytes in a thousand of a batch, which costs the library as long as gigatoken takes for a quarter of the rest.
_CHECKED_CHARACTERS = 4096
_FIELD = "corpus.encoder: gigatoken"
_OTHER = "set corpus.encoder=tokenizers, which gives the same ids"


class GigatokenEncoder:
    """By gigatoken. Raises `ConfigError` where it is not installed, too old to be bounded, or cannot take the tokenizer."""

    def __init__(self, backend: Any) -> None:
        gigatoken = _load_library()
        gigatoken.set_max_cache_bytes(_MOST_CACHE_BYTES)
        self._backend = backend
        self._num_calls = 0
        content = json.loads(backend.to_str())
        words = [token["content"] for token in content["added_tokens"] if not token["special"]]
        if words:
            raise ConfigError(f"{_FIELD} cannot look for words in texts, which this tokenizer does ({words[0]!r}); {_OTHER}")
        # The text of a special token inside a document is text like any other: so it knows of none.
        content |= {"added_tokens": [], "post_processor": None}
        try:
            self._encode = gigatoken.Tokenizer.from_json(json.dumps(content)).encode
        except Exception as error:  # whatever it raises of a tokenizer that it does not know
            raise ConfigError(f"{_FIELD} cannot take this tokenizer ({describe_reason(error)}); {_OTHER}") from error

    def __call__(self, texts: list[str]) -> list[NDArray[np.uint32]]:  # (num_tokens,) each
        """Raises `TokenizerError` where a piece that is encoded by both has other ids, and names it."""
        if texts:
            # Another text of each call, so that short ones are checked as long ones are, from a place that moves on.
            text = texts[self._num_calls % len(texts)]
            start = self._num_calls * _CHECKED_CHARACTERS % max(1, len(text) - _CHECKED_CHARACTERS)
            self._check(text[start : start + _CHECKED_CHARACTERS])
            self._num_calls += 1
        return [np.asarray(self._encode(text), dtype=np.uint32) for text in texts]

    def _check(self, text: str) -> None:
        self._backend.encode_special_tokens = True
        expected = self._backend.encode(text, add_special_tokens=False)
        found = self._encode(text).tolist()
        if found == expected.ids:
            return
        at = next(index for index, pair in enumerate(zip([*found, -1], [*expected.ids, -1], strict=False)) if pair[0] != pair[1])
        start, _ = expected.offsets[min(at, len(expected.offsets) - 1)] if expected.offsets else (0, 0)
        raise TokenizerError(
            f"gigatoken gives other ids than the tokenizer's own: token {at} of {text[:60]!r}... is {found[at : at + 5]} and should be "
            f"{expected.ids[at : at + 5]}, at {text[max(0, start - 20) : start + 40]!r}. {_OTHER[0].upper()}{_OTHER[1:]}; the corpus is made anew then"
        )


def name_version() -> str:
    """The installed distribution and its version."""
    name = packages_distributions()["gigatoken"][0]
    return f"{name} {version(name)}"


def _load_library() -> Any:
    try:
        import gigatoken
    except ImportError:
        raise ConfigError(f'{_FIELD} needs the library: pip install "miniplm[gigatoken]"; or {_OTHER}') from None
    if not hasattr(gigatoken, "set_max_cache_bytes"):
        raise ConfigError(
            f"{_FIELD}: the installed one remembers without bound, as 0.10.0 and older ones do; install a newer one, or {_OTHER}"
        )
    return gigatoken
