"""Difference Sampling: keeps the floor(ratio * candidates) sequences with the largest difference score (MiniPLM, section 2)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from miniplm import layout
from miniplm.config.selection import SelectionConfig
from miniplm.errors import CorpusError
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import DomainSelection, PoolSelection, SelectionManifest
from miniplm.records.stored import find_record
from miniplm.selection.budgets import Pool, count_passes, make_pools
from miniplm.selection.cut import Cut, KeptDomains, publish_shards
from miniplm.selection.document_selection import DocumentSurvey, publish_documents
from miniplm.selection.exclusions import NOTHING_EXCLUDED, Exclusions
from miniplm.selection.join import find_manifests
from miniplm.selection.order_statistics import ScratchFile
from miniplm.selection.steering import resolve_rule
from miniplm.selection.survey import Survey
from miniplm.selection.surveying import open_survey
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage, digest_content

SELECTION_VERSION = 1

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def resolve_selection_id(
    storage: Storage,
    corpus: CorpusManifest,
    teacher_id: str,
    reference_id: str,
    config: SelectionConfig,
    exclusions: Exclusions = NOTHING_EXCLUDED,
) -> str:
    """The id of a selection, made of the digests of all the scores that go into it and of the rule.

    By the published rule these are the ratio, the kind of score and what it ranks within; what else steers it enters where it is not
    at its default. The scores themselves are not read. Raises `ScoreJoinError` as `find_manifests`.
    """
    manifests = find_manifests(storage, corpus, teacher_id, reference_id)
    digests = [manifest.digest for of_model in zip(*manifests, strict=True) for manifest in of_model]
    content = [SELECTION_VERSION, corpus.corpus_id, teacher_id, reference_id, digests, repr(config.ratio), config.score]
    if config.within != "corpus":
        content.append(config.within)
    if config.unit == "document":  # they are of the same sums, but may have been added later, by another device
        entries = [manifest.documents for of_model in zip(*manifests, strict=True) for manifest in of_model]
        content.append([None if entry is None else entry.digest for entry in entries])
    if rule := _describe_rule(storage, config, exclusions):
        content.append(rule)
    return f"{config.name}-{digest_content(content)}"


def _describe_rule(storage: Storage, config: SelectionConfig, exclusions: Exclusions) -> dict[str, Any]:
    assert bool(exclusions.content) == config.excludes_ids, "what is left out by id is looked for by who selects"
    return resolve_rule(storage, config) | exclusions.content


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
    exclusions: Exclusions = NOTHING_EXCLUDED,
) -> SelectionManifest:
    """Selects the K = floor(ratio * N) candidates with the largest difference score, ties by the smaller sequence id.

    With `within: domain` so many of each domain, N being its candidates; one too small to keep any keeps none. Other rules
    rank something else or keep another number (`keys`, `budgets`), or documents instead of sequences (`document_selection`), and leave
    out what `exclusions` find before anything is ranked.
    Publishes `selections/SELECTION_ID/shard-N.parquet`, one file a candidate shard (`sequence_id` ascending,
    `teacher_nll`, `reference_nll`, `difference_score`, nats; `score` where that is an expression, `ranking_key` at a temperature),
    then the manifest. The same inputs give the same bytes, and a selection that is there whole is not made again.
    Raises `ScoreJoinError` unless each candidate has exactly one finite score from each model, or where the ratio keeps no
    sequence at all, and `ConfigError` where the rule asks for what is not there.
    """
    selection_id = resolve_selection_id(storage, corpus, teacher_id, reference_id, config, exclusions)
    if (existing := find_selection(storage, selection_id)) is not None:
        return existing
    with (
        exclusive(storage, layout.selection_folder(selection_id), f"selection {selection_id}"),
        tempfile.TemporaryDirectory(prefix="miniplm-select-") as folder,
        ScratchFile(Path(folder) / "scratch") as scratch,
        ExitStack() as stack,
    ):
        if (existing := find_selection(storage, selection_id)) is not None:  # made by another process meanwhile
            return existing
        storage.delete_temporary_files(layout.selection_folder(selection_id))
        rule, excluded = _describe_rule(storage, config, exclusions), exclusions.find()
        survey = stack.enter_context(open_survey(storage, corpus, teacher_id, reference_id, config, scratch, excluded, on_progress))
        pools = make_pools(survey.ranked, config)
        num_passes = count_passes(survey.ranked, config)
        num_selected = sum(pool.num_candidates if num_passes else pool.num_kept for pool in pools)
        storage.delete(layout.selection_manifest(selection_id))
        kept = KeptDomains(len(survey.domains))
        cut = Cut(survey.ranked, pools, num_passes)
        if isinstance(survey, DocumentSurvey):
            entries = tuple(publish_documents(storage, corpus, survey, selection_id, cut, kept, on_progress))
        else:
            entries = tuple(publish_shards(storage, corpus, survey, selection_id, cut, kept, on_progress))
        manifest = SelectionManifest(
            selection_id=selection_id,
            corpus_id=corpus.corpus_id,
            teacher_id=teacher_id,
            reference_id=reference_id,
            ratio=config.ratio,
            score=config.score,
            within=config.within,
            rule=rule,
            num_candidates=survey.num_candidates,
            num_selected=num_selected,
            num_selected_tokens=sum(entry.num_tokens for entry in entries),
            num_negative=survey.num_negative,
            left_out=survey.left_out,
            threshold=float(kept.threshold.min())
            if config.ranks_by_difference and config.within == "corpus" and len(pools) == 1
            else None,
            domains=_summarise_domains(survey, kept),
            pools=_summarise_pools(
                survey, kept, [replace(pool, num_kept=pool.num_candidates) for pool in pools] if num_passes else pools
            )
            if rule
            else (),
            shards=entries,
        )
        assert sum(entry.num_sequences for entry in entries) == num_selected
        storage.write_json(layout.selection_manifest(selection_id), manifest.as_json())
        return manifest


def _summarise_pools(survey: Survey, kept: KeptDomains, pools: Sequence[Pool]) -> tuple[PoolSelection, ...]:
    return tuple(
        PoolSelection(
            domains=tuple(sorted(survey.domains[domain] for domain in pool.domains)),
            num_ranked=pool.num_candidates,
            num_ranked_tokens=int(survey.ranked_tokens[pool.domains].sum()),
            num_selected=pool.num_kept,
            num_selected_tokens=int(kept.num_tokens[pool.domains].sum()),
            threshold=survey.key_runs.find(pool.domains, [pool.num_candidates - pool.num_kept])[0] if pool.num_kept else None,
        )
        for pool in sorted(pools, key=lambda pool: min(survey.domains[domain] for domain in pool.domains))
    )


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
