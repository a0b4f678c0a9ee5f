"""Difference Sampling: keeps the floor(ratio * candidates) sequences with the largest difference score (MiniPLM, section 2)."""

from __future__ import annotations

import tempfile
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path

from miniplm import layout
from miniplm.config.run import SelectionConfig
from miniplm.errors import CorpusError, ScoreJoinError
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, DomainSelection, SelectionManifest
from miniplm.records.stored import find_record
from miniplm.selection.cut import Cut, KeptDomains, Pool, publish_shards
from miniplm.selection.join import find_manifests
from miniplm.selection.order_statistics import ScratchFile
from miniplm.selection.survey import Survey, survey_candidates
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage, digest_content

SELECTION_VERSION = 1

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def count_selected(num_candidates: int, ratio: float) -> int:
    """floor(ratio * num_candidates), with the ratio as it is written: 0.29 of 100 is 29, where floats give 28."""
    return int((Decimal(repr(ratio)) * num_candidates).to_integral_value(ROUND_FLOOR))


def resolve_selection_id(
    storage: Storage, corpus: CorpusManifest, teacher_id: str, reference_id: str, config: SelectionConfig
) -> str:
    """The id of a selection, made of the digests of all the scores that go into it, the ratio, the kind of score and what it ranks within.

    The scores themselves are not read. Raises `ScoreJoinError` as `find_manifests`.
    """
    manifests = find_manifests(storage, corpus, teacher_id, reference_id)
    digests = [manifest.digest for of_model in zip(*manifests, strict=True) for manifest in of_model]
    content = [SELECTION_VERSION, corpus.corpus_id, teacher_id, reference_id, digests, repr(config.ratio), config.score]
    if config.within == "corpus":
        return f"{config.score}-{config.ratio:g}-{digest_content(content)}"
    return f"{config.score}-{config.ratio:g}-by-{config.within}-{digest_content([*content, config.within])}"


def find_selection(storage: Storage, selection_id: str) -> SelectionManifest | None:
    """The selection where it is there, whole: its manifest and every file with the digest that the manifest says."""
    manifest = find_record(storage, layout.selection_manifest(selection_id), SelectionManifest)
    if manifest is None:
        return None
    shards = [(layout.selection_shard(selection_id, shard.shard_index), shard.digest) for shard in manifest.shards]
    return manifest if all(storage.holds(path, digest) for path, digest in shards) else None


def load_selection(storage: Storage, selection_id: str) -> SelectionManifest:
    """The selection; `CorpusError` where it is not there or not whole."""
    manifest = find_selection(storage, selection_id)
    if manifest is None:
        raise CorpusError(f"selection {selection_id} is not at {storage.root}, or damaged; make it with `miniplm select CONFIG`")
    return manifest


def select_sequences(
    storage: Storage,
    corpus: CorpusManifest,
    teacher_id: str,
    reference_id: str,
    config: SelectionConfig,
    on_progress: ProgressCallback = ignore_progress,
) -> SelectionManifest:
    """Selects the K = floor(ratio * N) candidates with the largest difference score, ties by the smaller sequence id.

    With `within: domain` so many of each domain, N being its candidates; one too small to keep any keeps none.
    Publishes `selections/SELECTION_ID/shard-N.parquet`, one file a candidate shard (`sequence_id` ascending,
    `teacher_nll`, `reference_nll`, `difference_score`, nats), then the manifest. The same inputs give the same
    bytes, and a selection that is there whole is not made again.
    Raises `ScoreJoinError` unless each candidate has exactly one finite score from each model, and `ConfigError`
    where the ratio keeps no sequence at all.
    """
    selection_id = resolve_selection_id(storage, corpus, teacher_id, reference_id, config)
    if (existing := find_selection(storage, selection_id)) is not None:
        return existing
    with (
        exclusive(storage, layout.selection_folder(selection_id), f"selection {selection_id}"),
        tempfile.TemporaryDirectory(prefix="miniplm-select-") as folder,
        ScratchFile(Path(folder) / "scratch") as scratch,
    ):
        if (existing := find_selection(storage, selection_id)) is not None:  # made by another process meanwhile
            return existing
        storage.delete_temporary_files(layout.selection_folder(selection_id))
        survey = survey_candidates(storage, corpus, teacher_id, reference_id, config.score, scratch, on_progress)
        pools = _make_pools(survey, config)
        num_selected = sum(pool.num_kept for pool in pools)
        if num_selected == 0:
            of_each = " of each domain" if config.within == "domain" else ""
            raise ScoreJoinError(
                f"ratio {config.ratio:g} of {survey.num_candidates} candidate sequences{of_each} keeps none; "
                "use a larger selection.ratio or corpus"
            )
        storage.delete(layout.selection_manifest(selection_id))
        kept = KeptDomains(len(survey.domains))
        entries = tuple(publish_shards(storage, corpus, survey, selection_id, Cut(survey, pools), kept, on_progress))
        manifest = SelectionManifest(
            selection_id=selection_id,
            corpus_id=corpus.corpus_id,
            teacher_id=teacher_id,
            reference_id=reference_id,
            ratio=config.ratio,
            score=config.score,
            within=config.within,
            num_candidates=survey.num_candidates,
            num_selected=num_selected,
            num_selected_tokens=sum(entry.num_tokens for entry in entries),
            num_negative=survey.num_negative,
            threshold=float(kept.threshold.min()) if config.within == "corpus" else None,
            domains=_summarise_domains(survey, kept),
            shards=entries,
        )
        assert sum(entry.num_sequences for entry in entries) == num_selected
        storage.write_json(layout.selection_manifest(selection_id), manifest.as_json())
        return manifest


def _make_pools(survey: Survey, config: SelectionConfig) -> list[Pool]:
    """What is ranked together: all domains, or each by itself."""
    groups = (
        [list(range(len(survey.domains)))] if config.within == "corpus" else [[domain] for domain in range(len(survey.domains))]
    )
    pools = []
    for domains in groups:
        num_candidates = int(survey.num_sequences[domains].sum())
        pools.append(Pool(domains, num_candidates, count_selected(num_candidates, config.ratio)))
    return pools


def _summarise_domains(survey: Survey, kept: KeptDomains) -> dict[str, DomainSelection]:
    quantiles = survey.quantiles(QUANTILES)
    return {
        name: DomainSelection(
            num_candidates=int(survey.num_sequences[domain]),
            num_selected=int(kept.num_sequences[domain]),
            num_candidate_tokens=int(survey.num_tokens[domain]),
            num_selected_tokens=int(kept.num_tokens[domain]),
            mean_teacher_nll=round(float(survey.teacher_nll[domain] / survey.num_sequences[domain]), 9),
            mean_reference_nll=round(float(survey.reference_nll[domain] / survey.num_sequences[domain]), 9),
            difference_score_quantiles=quantiles[domain],
            threshold=float(kept.threshold[domain]) if kept.num_sequences[domain] else None,
        )
        for domain, name in sorted(enumerate(survey.domains), key=lambda item: item[1])
    }
