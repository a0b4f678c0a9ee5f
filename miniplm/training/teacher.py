"""The teacher of a student in training: checked to share the student's tokens, and loaded beside it.

Shapes: B sequences, S inputs of each, G width of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from miniplm.errors import TokenizerError, TrainingError
from miniplm.models.attention import use_attention_in_rows
from miniplm.models.compilation import CompiledCall
from miniplm.models.devices import resolve_dtype
from miniplm.models.files import has_tokenizer
from miniplm.models.loading import LoadedModel
from miniplm.models.locations import locate_model
from miniplm.models.opening import open_model
from miniplm.models.skeleton import read_skeleton
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.storage.root import Storage
from miniplm.tokenizers.document_ids import count_document_ids
from miniplm.tokenizers.tokenizer import load_tokenizer

_INSTEAD = "use method miniplm or seqkd, which need of a teacher only text"


def check_teacher(entry: ModelEntry, corpus: CorpusManifest, method: str) -> None:
    """Raises `TrainingError` unless the teacher's distributions are over the tokens of the corpus, as its files say.

    A model of the storage root was trained on these tokens; its files are not looked at.
    """
    if entry.stored:
        return
    folder = locate_model(entry.source, entry.revision)
    num_rows = read_skeleton(folder, entry.trust_remote_code).num_ids
    tokenizer = corpus.tokenizer
    if not has_tokenizer(folder):
        _check_vocab_size(num_rows, tokenizer.vocab_size, entry, corpus, method)
        return
    try:
        own = load_tokenizer(str(folder), tokenizer.eos_token, entry.trust_remote_code, is_separator_known=True)
    except TokenizerError as error:
        raise TrainingError(
            f"{method}: the teacher's own tokenizer does not fit corpus {corpus.corpus_id}: {error}. Else {_INSTEAD}"
        ) from error
    if own.entry.digest != tokenizer.digest:
        raise TrainingError(
            f"{method}: the teacher {entry.source} has another tokenizer than corpus {corpus.corpus_id} ({tokenizer.name}), and its "
            f"distributions are compared with the student's id by id; use a teacher with this tokenizer, or {_INSTEAD}"
        )
    _check_vocab_size(num_rows, count_document_ids(own), entry, corpus, method)


def open_teacher(storage: Storage, entry: ModelEntry, corpus: CorpusManifest, method: str, device: torch.device) -> LoadedModel:
    """The frozen teacher on the student's own device, in the dtype of its entry.

    Raises what `check_teacher` and `open_model` raise, `ConfigError` where the device cannot compute in that dtype, and
    `TrainingError` where the teacher has too few positions for the sequences of the corpus.
    """
    check_teacher(entry, corpus, method)
    resolve_dtype(entry.dtype, device)  # for its error alone: the entry's dtype was chosen where it scored
    if device.type == "cuda" and device.index is None:
        # By its number, so that the layers are not spread over GPUs on which other processes train.
        device = torch.device("cuda", torch.cuda.current_device())
    teacher = open_model(storage, entry, device)
    if device.type == "cuda":
        use_attention_in_rows(teacher.body, teacher.vocab_size)  # else each pass waits for the device to look at a mask
    if teacher.max_positions is not None and teacher.max_positions < corpus.sequence_length:
        raise TrainingError(
            f"{method}: the teacher {entry.source} has {teacher.max_positions} positions, and the sequences of corpus {corpus.corpus_id} have "
            f"{corpus.sequence_length}; use a teacher with more, or prepare the corpus with a smaller corpus.sequence_length"
        )
    return teacher


def compile_teacher(teacher: LoadedModel) -> LoadedModel:
    """The teacher with a compiled body; as it is where its rows are read a length at a time, each of which would be compiled."""
    if teacher.needs_equal_lengths or teacher.is_spread:
        return teacher
    return replace(teacher, body=cast(Any, CompiledCall(teacher.body, f"the teacher {teacher.name}", fixes_shapes=True)))


@torch.no_grad()
def run_teacher(teacher: LoadedModel, token_ids_BS: Tensor, lengths: Sequence[int]) -> Tensor:
    """Hidden states (B, S, G) in the teacher's own dtype, of each row's first `lengths` tokens as it gives them of that row alone.

    Each token sees all before it in its sequence, as the student's does. What comes after those tokens fills up and is of no meaning.
    """
    with torch.autocast(token_ids_BS.device.type, enabled=False):
        if not teacher.needs_equal_lengths:
            hidden_BSG: Tensor = teacher.body(input_ids=token_ids_BS, use_cache=False).last_hidden_state
            return hidden_BSG
        # Padding would change what it says of the text before: rows of one length at a time.
        rows_by_length: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            rows_by_length.setdefault(length, []).append(row)
        parts = {
            length: teacher.body(input_ids=token_ids_BS[rows, :length], use_cache=False).last_hidden_state
            for length, rows in rows_by_length.items()
            if length
        }
        first = next(iter(parts.values()))
        hidden_BSG = first.new_zeros((*token_ids_BS.shape, first.shape[2]))
        for length, part in parts.items():
            hidden_BSG[rows_by_length[length], :length] = part
    return hidden_BSG


def _check_vocab_size(num_rows: int, num_ids: int, entry: ModelEntry, corpus: CorpusManifest, method: str) -> None:
    if num_rows < num_ids:
        raise TrainingError(
            f"{method}: the teacher {entry.source} has a vocabulary of {num_rows} ids, the tokenizer of corpus {corpus.corpus_id} gives ids "
            f"up to {num_ids - 1}; use a teacher with this tokenizer, or {_INSTEAD}"
        )
