"""The process that parses and tokenises batches, one after the other, until nobody asks any more."""

from __future__ import annotations

import pickle
import traceback
from multiprocessing.connection import Connection

from miniplm.corpus.encoding import encode_parts
from miniplm.tokenizers.encoders import encode_documents, make_encoder


def main(descriptor: int) -> None:
    """Answers each batch on the pipe of that number; ends where the pipe is closed, as it is when the process that asks is gone."""
    from tokenizers import Tokenizer

    connection = Connection(descriptor)
    try:
        tokenizer, name, rules = pickle.loads(connection.recv_bytes())
        encode = make_encoder(Tokenizer.from_str(tokenizer), rules.encoder)
        while True:
            parts = pickle.loads(connection.recv_bytes())
            try:
                answer = pickle.dumps(encode_parts(parts, rules, lambda texts: encode_documents(encode, texts, name)), protocol=5)
            except Exception as error:
                answer = _pack_error(error)
            connection.send_bytes(answer)
    except (EOFError, OSError):
        return


def _pack_error(error: Exception) -> bytes:
    """The error itself where it can travel, with where it was raised."""
    trace = traceback.format_exc()
    try:
        error.add_note(f"In a process that tokenises:\n{trace}")
        packed = pickle.dumps(error)
        pickle.loads(packed)
        return packed
    except Exception:
        return pickle.dumps(RuntimeError(f"in a process that tokenises:\n{trace}"))
