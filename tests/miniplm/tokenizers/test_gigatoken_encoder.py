"""The second library: the same ids, held against the first one all along, and refused where it cannot be trusted."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken

from miniplm.errors import ConfigError, TokenizerError
from miniplm.tokenizers.encoders import LibraryEncoder, make_encoder
from miniplm.tokenizers.gigatoken_encoder import GigatokenEncoder
from tests.miniplm.corpus_fixtures import TRAINING_TEXT, make_bytes_tokenizer


def install(monkeypatch: pytest.MonkeyPatch, encode: Any, **attributes: Any) -> None:
    """A library that gives whatever ids."""
    tokenizer = SimpleNamespace(from_json=lambda content: SimpleNamespace(encode=encode))
    monkeypatch.setitem(sys.modules, "gigatoken", SimpleNamespace(Tokenizer=tokenizer, **attributes))


BOUNDED = {"set_max_cache_bytes": lambda num_bytes: None}


def test_its_ids_are_those_of_the_other_library():
    gigatoken = pytest.importorskip("gigatoken", reason="no bounded gigatoken is installed")
    if not hasattr(gigatoken, "set_max_cache_bytes"):
        pytest.skip("the installed gigatoken is not bounded")
    backend = make_bytes_tokenizer()
    texts = [*TRAINING_TEXT, "", " <|end|> is text here", "a" * 9000]
    found = make_encoder(backend, "gigatoken")(texts)
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in LibraryEncoder(backend)(texts)]


def test_other_ids_are_told_with_their_text_and_stop_the_work(monkeypatch: pytest.MonkeyPatch):
    backend = make_bytes_tokenizer()

    def encode(text: str) -> Any:
        (ids,) = LibraryEncoder(backend)([text])
        return ids + (ids == backend.token_to_id("7"))

    install(monkeypatch, encode, **BOUNDED)
    encoder = GigatokenEncoder(backend)
    encoder(["nothing odd"])
    with pytest.raises(
        TokenizerError, match=r"token \d+ of 'abc7d'... is \[.*\] and should be \[.*\], at 'abc7d'. Set corpus.encoder=tokenizers"
    ):
        [encoder(["x", "abc7d"]) for _ in range(3)]  # another text of each call


def test_what_is_not_there_not_bounded_or_not_able_is_refused(monkeypatch: pytest.MonkeyPatch):
    backend = make_bytes_tokenizer()
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    with pytest.raises(
        ConfigError, match=r"corpus.encoder: gigatoken needs the library: pip install .*; or set corpus.encoder=tokenizers"
    ):
        GigatokenEncoder(backend)
    install(monkeypatch, None)
    with pytest.raises(ConfigError, match=r"remembers without bound, as 0.10.0 and older ones do"):
        GigatokenEncoder(backend)
    install(monkeypatch, None, **BOUNDED)
    monkeypatch.setattr(sys.modules["gigatoken"].Tokenizer, "from_json", lambda content: 1 / 0)
    with pytest.raises(ConfigError, match=r"cannot take this tokenizer \(.*zero.*\); set"):
        GigatokenEncoder(backend)
    backend.add_tokens([AddedToken("a word")])
    with pytest.raises(ConfigError, match=r"cannot look for words in texts.*'a word'"):
        GigatokenEncoder(backend)
