"""Which token ids the sequences of a corpus can hold, so that a model needs rows for these and no others."""

from __future__ import annotations

from miniplm.tokenizers.tokenizer import CorpusTokenizer


def count_document_ids(tokenizer: CorpusTokenizer) -> int:
    """One more than the largest id that can be in a sequence: of what encoding a document gives, and EOS.

    A special token that was added to the vocabulary never comes out of a document, so a model may have no row for it: the
    tokenizer of Gemma 3 has an image token, whose id is the number of rows of the models that read text alone.
    """
    hf_tokenizer = tokenizer.tokenizer
    backend = getattr(hf_tokenizer, "backend_tokenizer", None) if getattr(hf_tokenizer, "is_fast", False) else None
    base = backend.model.token_to_id if backend is not None else lambda text: None
    never = {
        token_id
        for token_id, token in hf_tokenizer.added_tokens_decoder.items()
        if token.special and token_id != tokenizer.eos_token_id and base(token.content) is None
    }
    largest: int = max(token_id for token_id in hf_tokenizer.get_vocab().values() if token_id not in never)
    return largest + 1
