"""Options that exclude one another, or change nothing beside another, are refused by name before anything is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flows.cli.facts import config, inspect
from flows.cli.fleet import rescore
from flows.cli.options import take_one
from flows.cli.scoring import score
from flows.cli.stages import select
from miniplm.errors import ConfigError


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (
            inspect,
            {"sequence_id": 0, "diversity": True},
            r"^--id and --diversity exclude one another; give one of --id, --by-domain, ",
        ),
        (inspect, {"by_domain": True, "by_kind": True}, "^--by-domain and --by-kind exclude"),
        (inspect, {"by_document": True, "by_kind": True, "diversity": True}, "^--by-kind and --diversity and --documents exclude"),
        (inspect, {"sequence_id": 0, "limit": 10}, "^--limit would change nothing beside --id; leave out the one or the other"),
        (inspect, {"by_kind": True, "bottom": True, "domain": ""}, "^--bottom and --domain would change nothing beside --by-kind"),
        (score, {"calibrate": 8, "documents": True}, "^--documents would change nothing beside --calibrate"),
        (score, {"calibrate": 8, "shard": [0], "again": True}, "^--shard and --again would change nothing beside --calibrate"),
        (select, {"ratio": 0.3, "overrides": ["selection.ratio=0.4"]}, "^--ratio and --set selection.ratio exclude one another"),
        (rescore, {"failed": True, "again": True}, "^--again would change nothing beside --failed"),
        (config, {"schema": True, "architectures": True}, "^--schema and --architectures exclude"),
        (config, {"target": "a.yaml", "schema": True}, "^CONFIG and --schema exclude"),
        (config, {"schema": True, "overrides": ["a=1"]}, "^--set would change nothing beside --schema"),
        (inspect, {"target": "a.yaml", "storage": "s3://b/x"}, "^--storage is where to look .* give --set storage=s3://b/x"),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., None], options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("flows.cli.options.start_quietly", lambda verbose: None)  # it sets up the whole process
    with pytest.raises(ConfigError, match=message):
        command(**{"target": "nobody"} | options if command is not config else options)


def test_the_option_that_was_given_is_named_and_0_is_one() -> None:
    assert take_one({"--id": 0, "--diversity": False, "--domain": None, "--shard": []}) == "--id"
    assert take_one({"--id": None, "--diversity": False}) is None
