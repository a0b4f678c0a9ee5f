"""Rules of a selection that contradict themselves."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from miniplm.config.selection import SelectionConfig


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"ratio": 0.5, "tokens": 5},
            r"exactly one of ratio, tokens and threshold says how much is kept, here ratio 0\.5 and tokens 5; set the others to null",
        ),
        ({"tokens": 5, "threshold": 0.1}, r"here tokens 5 and threshold 0\.1"),
        ({"ratio": None}, r"here none of them"),
        ({"tokens": "5.5"}, r"valid integer"),
        ({"tokens": 0}, r"greater than 0"),
        ({"mix": {"a": 1.5}}, r"mix of 'a' is 1\.5; a share"),
        ({"mix": {"a": 0.7, "b": {"at_least": 0.5}}}, r"least shares of mix add up to 1\.2, more than 1: a 0\.7, b 0\.5"),
        ({"mix": {"a": {"at_least": 0.5, "at_most": 0.4}}}, r"at_least 0\.5 is more than at_most 0\.4"),
        ({"mix": {"a": "x"}}, r"^1 validation error[^\[]*mix\.a\.share\s+Input should be a valid number"),
        ({"mix": {"a": {"at_leas": 0.5}}}, r"^1 validation error[^\[]*mix\.a\.bounds\.at_leas\s+Extra inputs"),
        ({"mix": {"a": 0.5}, "within": "domain"}, r"both say what the mix of domains is"),
        ({"threshold": 0, "mix": {"a": 0.5}}, r"mix says nothing beside threshold"),
        ({"threshold": 0, "temperature": 1}, r"temperature says nothing beside threshold"),
        ({"temperature": -1}, r"greater than or equal to 0"),
        (
            {"score": "x", "signals": [{"name": "domain", "path": "x", "key": "sequence_id", "column": "y"}]},
            r"the name 'domain' is taken",
        ),
        ({"signals": [{"name": "x", "path": "x", "key": "sequence_id", "column": "y"}]}, r"signals are columns of score and where"),
        ({"score": "x", "signals": [{"name": "a b", "path": "x", "key": "sequence_id", "column": "y"}]}, r"match pattern"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SelectionConfig.model_validate(rule)
