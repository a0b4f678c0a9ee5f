"""What `selection.duplicates: best` and `contamination: drop` leave out: the ids, and what names them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miniplm.config.selection import SelectionConfig
from miniplm.errors import ConfigError
from miniplm.overlap.contamination import provide_contamination, read_matches, resolve_contamination_id
from miniplm.overlap.copies import COPIES_VERSION, provide_copies, read_copies
from miniplm.overlap.evaluation_texts import EvaluationSource
from miniplm.overlap.redundancy import REDUNDANT_SHARE, CopiedParts, Ids, find_redundant
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest
from miniplm.selection.exclusions import NOTHING_EXCLUDED, ExcludedIds, Exclusions
from miniplm.selection.order_statistics import ScratchFile
from miniplm.selection.surveying import open_survey, read_ranked
from miniplm.storage.root import Storage

# As `SelectionManifest.left_out` names them.
CONTAMINATED = "contaminated"
COPY = "copy of a better one"


def plan_exclusions(
    storage: Storage,
    corpus: CorpusManifest,
    teacher_id: str,
    reference_id: str,
    config: SelectionConfig,
    list_sources: Callable[[], Sequence[EvaluationSource]],
    trust_remote_code: bool = False,
    on_progress: ProgressCallback = ignore_progress,
) -> Exclusions:
    """What a selection leaves out by id, named at once and looked for when it is asked for. Raises `ConfigError` where there is no text to look for."""
    if not config.excludes_ids:
        return NOTHING_EXCLUDED
    content: dict[str, Any] = {}
    sources: Sequence[EvaluationSource] = ()
    if config.contamination == "drop":
        sources = list_sources()
        if not sources:
            raise ConfigError(
                "selection.contamination is drop, but the run has no text that students are measured on; name evaluation.tasks or "
                "evaluation.sources, give corpus.splits.heldout a share, or leave contamination out"
            )
        content["contamination_id"] = resolve_contamination_id(sources)
    if config.duplicates == "best":
        content["copies"] = f"{COPIES_VERSION}-{REDUNDANT_SHARE:g}"

    def find() -> list[ExcludedIds]:
        excluded = []
        if config.contamination == "drop":
            contamination = provide_contamination(storage, corpus, sources, trust_remote_code, on_progress)
            column = "document_id" if config.unit == "document" else "sequence_id"
            found = [read_matches(storage, contamination, entry)[column].to_numpy() for entry in contamination.shards]
            excluded.append(ExcludedIds(CONTAMINATED, np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))))
        if config.duplicates == "best":
            copies = read_copies(storage, provide_copies(storage, corpus, on_progress))
            ids = _find_worse_copies(storage, corpus, teacher_id, reference_id, config, copies, excluded, on_progress)
            excluded.append(ExcludedIds(COPY, ids))
        return excluded

    return Exclusions(content, find)


def _find_worse_copies(
    storage: Storage,
    corpus: CorpusManifest,
    teacher_id: str,
    reference_id: str,
    config: SelectionConfig,
    copies: pa.Table,
    excluded: Sequence[ExcludedIds],
    on_progress: ProgressCallback,
) -> Ids:
    """The sequences or documents that are redundant by the score itself: noise would give a text as many chances as it has copies.

    One more pass over the scores. Memory: some 50 bytes a part of a document that has copies.
    """
    parts = list_copied_parts(copies, config.unit)
    wanted = np.unique(parts.row_ids)
    scored = config.model_copy(update={"temperature": 0.0})
    found: list[tuple[Any, ...]] = []
    with (
        tempfile.TemporaryDirectory(prefix="miniplm-copies-") as folder,
        ScratchFile(Path(folder) / "scratch") as scratch,
        open_survey(storage, corpus, teacher_id, reference_id, scored, scratch, excluded, on_progress) as survey,
    ):
        for block in read_ranked(storage, corpus, survey):
            rows = np.flatnonzero(np.isin(block.ids, wanted, assume_unique=True))
            found.append((block.ids[rows], block.num_tokens[rows].astype(np.int64), block.keys[rows]))
    if not found:
        return np.zeros(0, dtype=np.int64)
    ids, num_tokens, keys = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(ids, kind="stable")
    return find_redundant(parts, ids[order], num_tokens[order], keys[order])


def list_copied_parts(copies: pa.Table, unit: str) -> CopiedParts:
    """The rows of `COPIES_SCHEMA` by the sequences, or by the documents, that they are in."""
    if unit == "document":
        # A document once, whole.
        copies = copies.group_by(["document_id", "group_id", "document_tokens"]).aggregate([])
        copies = copies.sort_by("document_id")
        names = ("document_id", "document_id", "group_id", "document_tokens")
    else:
        copies = copies.sort_by([("sequence_id", "ascending"), ("document_id", "ascending")])
        names = ("sequence_id", "document_id", "group_id", "num_tokens")
    return CopiedParts(*(pc.cast(copies[name], pa.int64()).to_numpy() for name in names))
