"""The first pass over what a rule ranks, sequences or documents, and its rows read once more in the order of ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from miniplm.config.selection import SelectionConfig
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, is_proxy
from miniplm.selection.candidates import Floats, Integers
from miniplm.selection.connection import connect
from miniplm.selection.document_selection import DocumentSurvey, survey_documents
from miniplm.selection.exclusions import ExcludedIds
from miniplm.selection.order_statistics import ScratchFile
from miniplm.selection.steering import open_keys
from miniplm.selection.survey import Survey, survey_candidates
from miniplm.storage.root import Storage


@contextmanager
def open_survey(
    storage: Storage,
    corpus: CorpusManifest,
    teacher_id: str,
    reference_id: str,
    config: SelectionConfig,
    scratch: ScratchFile,
    excluded: Sequence[ExcludedIds] = (),
    on_progress: ProgressCallback = ignore_progress,
) -> Iterator[Survey | DocumentSurvey]:
    """What is known of all that is ranked; documents can be read again while it is open. Raises as `survey_candidates` and `survey_documents`."""
    with ExitStack() as stack:
        if config.unit == "document":
            connection = stack.enter_context(connect(storage))
            yield survey_documents(connection, storage, corpus, teacher_id, reference_id, config, scratch, excluded, on_progress)
        else:
            # Who has scored which part of which document: a proxy predicts whole sequences.
            model_id = reference_id if is_proxy(teacher_id) else teacher_id
            keys = stack.enter_context(open_keys(storage, corpus, model_id, config, excluded, on_progress))
            yield survey_candidates(storage, corpus, teacher_id, reference_id, keys, scratch, on_progress)


@dataclass(frozen=True)
class RankedBlock:
    """Rows in the order of their ids: place of the domain, tokens and ranking key (NaN where a row is left out), (num_rows,) each."""

    ids: NDArray[np.int64]
    domains: Integers
    num_tokens: Integers
    keys: Floats


def read_ranked(storage: Storage, corpus: CorpusManifest, survey: Survey | DocumentSurvey) -> Iterator[RankedBlock]:
    """All rows of a survey once more, a shard or some 10^5 documents at a time; always in the same blocks."""
    if isinstance(survey, DocumentSurvey):
        for block in survey.read_blocks():
            yield RankedBlock(block.columns["document_id"], block.domains, block.columns["num_tokens"], block.keys)
        return
    for shard in corpus.split_shards("candidate"):
        domains, num_tokens = survey.read_sequences(shard)
        keys = survey.read_keys(shard, survey.read_scores(storage, shard)).ranking_key
        ids = np.arange(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences)
        yield RankedBlock(ids, domains, num_tokens, keys)
