"""The table of held-out losses where students count other tokens."""

from __future__ import annotations

import pytest

from miniplm.records.manifests import DomainLoss
from miniplm.report.heldout import _Rows


def make_loss(num_tokens: int) -> DomainLoss:
    return DomainLoss(nats_per_token=2.0, bits_per_byte=1.0, num_scored_tokens=num_tokens, num_sequences=3)


@pytest.mark.parametrize(("counts", "told"), [((1435, 1435), "1,435"), ((1532, 1413), "1,413–1,532")])
def test_tokens_of_held_out_text_are_told_of_each_tokenizer(counts: tuple[int, int], told: str) -> None:
    rows = _Rows(["a", "b"], set(), len(set(counts)) == 1, True)
    assert rows.make_row("all", dict(zip("ab", map(make_loss, counts), strict=True)), {})[1] == told
