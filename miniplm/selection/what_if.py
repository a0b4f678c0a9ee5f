"""What a grid of selections would keep, without making any: the candidates are read twice for each ranking, however many budgets are tried of it."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from miniplm.config.selection import SelectionConfig
from miniplm.config.what_if import GridSelection, parse_grid
from miniplm.errors import MiniplmError
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest
from miniplm.records.what_if import Outcome, WhatIf
from miniplm.selection.budgets import Pool, count_passes, make_pools
from miniplm.selection.cut import Cut
from miniplm.selection.document_selection import DocumentSurvey
from miniplm.selection.exclusions import NOTHING_EXCLUDED, Exclusions
from miniplm.selection.order_statistics import ScratchFile, StoredArray
from miniplm.selection.outcomes import Outcomes
from miniplm.selection.ranking import resolve_selection_id
from miniplm.selection.steering import check_rule
from miniplm.selection.survey import Survey
from miniplm.selection.surveying import open_survey, read_ranked
from miniplm.storage.root import Storage

# What decides how rows are ranked is all but what decides how many are kept.
_BUDGET_FIELDS = {"ratio", "tokens", "threshold", "within", "mix", "repetitions"}
# Of the rows of each block: which the current selection has, a bit each.
_Current = list[StoredArray]


def try_selections(
    storage: Storage,
    corpus: CorpusManifest,
    teacher_id: str,
    reference_id: str,
    config: SelectionConfig,
    grid: str,
    on_progress: ProgressCallback = ignore_progress,
    plan_exclusions: Callable[[SelectionConfig], Exclusions] = lambda config: NOTHING_EXCLUDED,
) -> WhatIf:
    """What each selection of a grid would keep, and how much of it `config` keeps too. Nothing is published.

    Memory does not grow with the candidates; a scratch file takes some 11 bytes of each, more at a temperature. Raises what `parse_grid` and
    `select_sequences` raise; a selection of the grid that cannot be met is in the result, with the reason.
    """
    started = time.monotonic()
    selections = parse_grid(grid, config)
    for score in {selection.config.score: selection.config for selection in selections}.values():
        check_rule(score)
    selection_id = resolve_selection_id(storage, corpus, teacher_id, reference_id, config, plan_exclusions(config))
    rankings: dict[str, list[int]] = {_name_ranking(config): []}
    for place, selection in enumerate(selections):
        rankings.setdefault(_name_ranking(selection.config), []).append(place)
    outcomes: dict[int, Outcome] = {}
    current, num_candidates, tokens = Outcome(settings={}), 0, {}
    with _open_scratch() as scratch:
        members: _Current = []
        for number, places in enumerate(rankings.values()):
            chosen = [selections[place] for place in places]
            if number == 0:  # that of the current selection, against which all are held
                chosen = [GridSelection({}, config), *chosen]
            # Any of them ranks alike; one with a budget of tokens has these weighed.
            ranked_by = next((one.config for one in chosen if one.config.has_token_budget), chosen[0].config)
            excluded = plan_exclusions(ranked_by).find()
            with (
                _open_scratch() as own,
                open_survey(storage, corpus, teacher_id, reference_id, ranked_by, own, excluded, on_progress) as survey,
            ):
                ranking = _Ranking(storage, corpus, survey, on_progress)
                if number == 0:
                    members = ranking.find_members(config, scratch)
                    num_candidates = survey.num_candidates
                    tokens = ranking.describe_tokens()
                found = ranking.count(chosen, members)
            if number == 0:
                current, *found = found
            outcomes |= dict(zip(places, found, strict=True))
    return WhatIf(
        grid=grid,
        corpus_id=corpus.corpus_id,
        teacher_id=teacher_id,
        reference_id=reference_id,
        selection_id=selection_id,
        num_candidates=num_candidates,
        tokens=tokens,
        current=current,
        outcomes=tuple(outcomes[place] for place in range(len(selections))),
        seconds=time.monotonic() - started,
    )


def _name_ranking(config: SelectionConfig) -> str:
    """The same for two selections that rank the same rows by the same keys."""
    rule = config.model_dump(mode="json", exclude=_BUDGET_FIELDS)
    if not config.temperature:
        rule.pop("seed")
    return json.dumps(rule, sort_keys=True)


@contextmanager
def _open_scratch() -> Iterator[ScratchFile]:
    with tempfile.TemporaryDirectory(prefix="miniplm-what-if-") as folder, ScratchFile(Path(folder) / "scratch") as scratch:
        yield scratch


class _Ranking:
    """The candidates ranked in one way, for selections that differ in how many they keep."""

    def __init__(
        self, storage: Storage, corpus: CorpusManifest, survey: Survey | DocumentSurvey, on_progress: ProgressCallback
    ) -> None:
        self._storage, self._corpus, self.survey, self._on_progress = storage, corpus, survey, on_progress

    def describe_tokens(self) -> dict[str, int]:
        """Tokens of all candidates by domain."""
        pairs = zip(self.survey.domains, self.survey.num_tokens.tolist(), strict=True)
        return dict(sorted(pairs))

    def find_members(self, config: SelectionConfig, scratch: ScratchFile) -> _Current:
        """Which rows a selection keeps, put aside."""
        cut = Cut(self.survey.ranked, self._make_pools(config))
        members = []
        for block in read_ranked(self._storage, self._corpus, self.survey):
            is_kept = np.zeros(len(block.keys), dtype=np.bool_)
            is_kept[cut.find_kept(block.domains, block.keys)] = True
            members.append(scratch.append(np.packbits(is_kept)))
        return members

    def _make_pools(self, config: SelectionConfig) -> list[Pool]:
        """How much is kept of each pool; a budget that is filled by repetitions keeps all of it."""
        pools = make_pools(self.survey.ranked, config)
        if count_passes(self.survey.ranked, config):
            return [replace(pool, num_kept=pool.num_candidates) for pool in pools]
        return pools

    def count(self, selections: Sequence[GridSelection], members: _Current) -> list[Outcome]:
        """What each keeps."""
        pools: dict[int, list[Pool]] = {}
        found: dict[int, Outcome] = {}
        for place, selection in enumerate(selections):
            try:
                pools[place] = self._make_pools(selection.config)
            except MiniplmError as error:
                found[place] = Outcome(settings=selection.settings, left_out=self.survey.left_out, problem=str(error))
        # Those whose pools are of the same domains are counted together.
        families: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for place, one in pools.items():
            families.setdefault(tuple(tuple(pool.domains) for pool in one), []).append(place)
        counted = [Outcomes(self.survey.ranked, [pools[place] for place in family]) for family in families.values()]
        blocks = zip(read_ranked(self._storage, self._corpus, self.survey), members, strict=True)
        for done, (block, member) in enumerate(blocks, start=1):
            is_current = np.unpackbits(member.read(), count=len(block.keys)).astype(np.bool_)
            for outcomes in counted:
                outcomes.add(block.domains, block.num_tokens, block.keys, is_current)
            self._on_progress(Progress("try selections", done, len(members), "blocks"))
        for family, outcomes in zip(families.values(), counted, strict=True):
            rows, tokens, shared = outcomes.counts()
            for number, place in enumerate(family):
                found[place] = self._describe(selections[place], pools[place], rows[number], tokens[number], shared[number])
        return [found[place] for place in range(len(selections))]

    def _describe(
        self,
        selection: GridSelection,
        pools: Sequence[Pool],
        rows: NDArray[np.int64],
        tokens: NDArray[np.int64],
        shared: NDArray[np.int64],
    ) -> Outcome:
        """By rows, tokens and rows of the current selection that are kept of each domain, (num_domains,) each."""
        thresholds = {
            ", ".join(sorted(self.survey.domains[domain] for domain in pool.domains)): self.survey.ranked.keys.find(
                pool.domains, [pool.num_candidates - pool.num_kept]
            )[0]
            for pool in pools
            if pool.num_kept
        }
        assert int(rows.sum()) == sum(pool.num_kept for pool in pools)
        return Outcome(
            settings=selection.settings,
            num_selected=int(rows.sum()),
            num_selected_tokens=int(tokens.sum()),
            threshold=next(iter(thresholds.values())) if len(pools) == 1 else None,
            thresholds=thresholds if len(pools) > 1 else {},
            tokens={name: kept for name, kept in sorted(zip(self.survey.domains, tokens.tolist(), strict=True)) if kept},
            num_shared=int(shared.sum()),
            left_out=self.survey.left_out,
        )
