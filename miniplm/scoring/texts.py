"""Texts scored by two models, for a notebook: no storage root, no configuration, nothing written.

Shapes: T tokens of a window, W windows, N texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from miniplm.errors import ConfigError, ScoreError, TokenizerError, list_offenders
from miniplm.models.configuration import read_config
from miniplm.models.devices import device_errors, free_cached_memory, resolve_device, resolve_dtype, use_device
from miniplm.models.lengths import find_max_positions
from miniplm.models.loading import load_model
from miniplm.models.locations import locate_model
from miniplm.scoring.engine import Scorer
from miniplm.tokenizers.agreement import find_disagreement
from miniplm.tokenizers.tokenizer import CorpusTokenizer, TokenIds, load_tokenizer


def score(
    texts: Iterable[str],
    teacher: str | Path,
    reference: str | Path,
    *,
    sequence_length: int = 1024,
    dtype: str = "auto",
    device: str = "auto",
) -> pa.Table:
    """The NLL of each text under both models, and the difference: higher is what Difference Sampling keeps first.

    `texts`: a list, or a column of a dataset. `teacher`, `reference`: hub ids or folders of causal language models with one vocabulary.
    A text is followed by EOS and cut into windows of `sequence_length` targets, each of which sees what is in it; the first token of a window is
    no target. Columns, in the order of the texts, null where a text is empty and has no target:

        num_tokens, num_scored_tokens, teacher_nll, reference_nll     nats a scored token
        difference_score = reference_nll - teacher_nll

    Raises `ConfigError` for what is no text, and what loading a model raises.
    """
    texts = _check_texts(texts)
    if sequence_length < 2:
        raise ConfigError(f"sequence_length is {sequence_length}; it must be at least 2")
    folders = {"teacher": locate_model(str(teacher)), "reference": locate_model(str(reference))}
    tokenizer = load_tokenizer(str(folders["teacher"]), field="the teacher's eos_token")
    if problem := find_disagreement(folders["reference"], tokenizer):
        raise TokenizerError(
            f"teacher {teacher} and reference {reference} have no vocabulary in common: {problem}. Take a reference of the same family"
        )
    longest = [find_max_positions(read_config(folder)) for folder in folders.values()]
    window = min(sequence_length, *(positions for positions in longest if positions is not None), sequence_length)
    windows, bounds, num_tokens = _cut(tokenizer, texts, window)
    sums = {}
    num_scored = np.zeros(len(texts), dtype=np.int64)
    for role, folder in folders.items():
        where = resolve_device(device)
        with use_device(where), device_errors(where, f"scoring by the {role}"):
            scorer = Scorer(load_model(folder, resolve_dtype(dtype, where), where), compile=False)
            scores = scorer.score(windows, tokenizer.eos_token_id)
            del scorer
            free_cached_memory()
        broken = np.flatnonzero(~np.isfinite(scores.nll_sum))
        if len(broken):
            owners = sorted({int(np.searchsorted(bounds, index, side="right")) - 1 for index in broken})
            raise ScoreError(
                f"{len(owners)} texts have a non-finite NLL under the {role} (rows {list_offenders(owners)}); give dtype='float32'"
            )
        sums[role] = _sum_by_text(scores.nll_sum, bounds)
        num_scored = _sum_by_text(scores.num_scored_tokens, bounds).astype(np.int64)
    means = {
        role: np.divide(total, num_scored, out=np.full(len(texts), np.nan), where=num_scored > 0) for role, total in sums.items()
    }
    return pa.table(
        {
            "num_tokens": pa.array(num_tokens),
            "num_scored_tokens": pa.array(num_scored),
            "teacher_nll": pa.array(means["teacher"], from_pandas=True),
            "reference_nll": pa.array(means["reference"], from_pandas=True),
            "difference_score": pa.array(means["reference"] - means["teacher"], from_pandas=True),
        }
    )


def _check_texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise ConfigError("texts is one string; give a list of texts, or a column of a dataset")
    # These would give their names of columns.
    if isinstance(texts, Mapping) or hasattr(texts, "columns") or not isinstance(texts, Iterable):
        raise ConfigError(f"texts is a {type(texts).__name__}; give a list of texts, or one column of it")
    found = [text.as_py() if isinstance(text, pa.Scalar) else text for text in texts]
    wrong = [index for index, text in enumerate(found) if not isinstance(text, str)]
    if wrong:
        raise ConfigError(
            f"rows {list_offenders(wrong)} are no texts (row {wrong[0]} is a {type(found[wrong[0]]).__name__}); leave them out"
        )
    broken = [index for index, text in enumerate(found) if not _is_unicode(text)]
    if broken:
        raise ConfigError(
            f"rows {list_offenders(broken)} hold half of a character (a lone surrogate), which no tokenizer takes; leave them out"
        )
    return found


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _cut(tokenizer: CorpusTokenizer, texts: list[str], window: int) -> tuple[list[TokenIds], list[int], list[int]]:
    """Windows of token ids (T,), at least two ids each; where the windows of each text begin, and the last ends; tokens a text, EOS included."""
    windows: list[TokenIds] = []
    bounds, num_tokens = [0], []
    eos = np.array([tokenizer.eos_token_id], dtype=np.uint32)
    for token_ids in tokenizer.encode_documents(texts):
        row = np.concatenate([token_ids, eos]) if len(token_ids) else token_ids
        num_tokens.append(len(row))
        # As few windows as there can be, and as equal, so that none is left with one token.
        count = max(1, -(-len(row) // (window + 1)))
        edges = np.linspace(0, len(row), count + 1).astype(int).tolist()
        windows += [row[start:stop] for start, stop in pairwise(edges) if stop - start > 1]
        bounds.append(len(windows))
    return windows, bounds, num_tokens


def _sum_by_text(values_W: np.ndarray[Any, Any], bounds: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The sum of each text's windows, (N,)."""
    totals = np.concatenate([np.zeros(1), np.cumsum(values_W, dtype=np.float64)])
    sums: np.ndarray[Any, np.dtype[np.float64]] = np.diff(totals[np.array(bounds, dtype=np.int64)])
    return sums
