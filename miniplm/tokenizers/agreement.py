"""Whether a model's own tokenizer gives the token ids of a corpus: what maps text to ids is compared, not what is around it."""

from __future__ import annotations

import logging
from pathlib import Path

from miniplm.tokenizers.folders import list_differing_rules
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer

_log = logging.getLogger("miniplm")


def find_disagreement(folder: Path, corpus_tokenizer: CorpusTokenizer, trust_remote_code: bool = False) -> str | None:
    """How many tokens have another id in a model's folder than in the corpus, in words; None where the two share their vocabulary.

    A vocabulary that is shared means that each id is the embedding of the same token, so that the model can read the corpus. Where it splits
    text by other rules it was trained on other ids for the same text, and its NLLs are higher than they need be; that is said and no error:
    the files of one family often write the same rules in different ways. Raises `TokenizerError` where the files cannot be read.
    """
    # The model's own EOS does not matter here, only its vocabulary: documents are separated by the corpus' token.
    own = load_tokenizer(str(folder), corpus_tokenizer.entry.eos_token, trust_remote_code, is_separator_known=True)
    if own.entry.digest != corpus_tokenizer.entry.digest:
        ours, theirs = corpus_tokenizer.vocabulary, own.vocabulary
        num_different = sum(theirs.get(token) != token_id for token, token_id in ours.items())
        num_more = sum(token not in ours for token in theirs)
        more = f", and it has {num_more} that the corpus's has not" if num_more else ""
        return f"{num_different} of {len(ours)} tokens have another id{more}"
    if own.backend is not None and corpus_tokenizer.backend is not None:
        rules = list_differing_rules(corpus_tokenizer.backend, own.backend)
        if rules:
            _log.warning(
                f"model {folder} has the vocabulary of the corpus's tokenizer {corpus_tokenizer.entry.name!r}, but other rules to cut text "
                f"with ({', '.join(rules)}): it was trained on other ids for the same text, unless the rules come to the same. Give as "
                "corpus.tokenizer the folder of the teacher"
            )
    return None
