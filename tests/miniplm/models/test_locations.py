"""Where models, tokenizers and architectures lie: a folder that this process may read, or what the hub's own cache holds."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import huggingface_hub
import pytest

from miniplm.errors import ConfigError, ModelError, TokenizerError
from miniplm.models.locations import locate_config, locate_model, locate_tokenizer


def test_a_revision_of_a_model_of_the_hub_is_the_one_that_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's own cache, without the hub: `main` and a branch are different commits."""
    cache = tmp_path / "models--owner--name"
    (cache / "refs").mkdir(parents=True)
    for branch, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        (cache / "refs" / branch).write_text(commit)
        (cache / "snapshots" / commit).mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert locate_model("owner/name") == cache / "snapshots" / ("a" * 40)
    assert locate_model("owner/name", "v2") == cache / "snapshots" / ("b" * 40)
    with pytest.raises(ModelError, match="nor could it be fetched from the hub"):
        locate_model("owner/name", "v3")


def test_a_path_that_no_file_can_have_is_refused() -> None:
    for name in ("x" * 5000, "~nobody-of-this-name/model"):
        with pytest.raises(ModelError, match="cannot be looked for"):
            locate_model(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("unreadable", "kinds"), [("config.json", 3), ("model.safetensors", 1), ("tokenizer.json", 2), (".", 3)])
def test_what_may_not_be_read_is_named_whoever_looks_first(unreadable: str, kinds: int) -> None:
    """A model, a tokenizer and an architecture are refused before a library gets to a file that it may not read."""
    looks = ((locate_model, ModelError), (locate_tokenizer, TokenizerError), (locate_config, ConfigError))
    told = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            (folder / file).write_text("{}")
        (folder / unreadable).chmod(0)
        os.seteuid(65534)
        try:
            for look, kind in looks:
                try:
                    look(name)
                except kind as error:
                    told.append(str(error))
        finally:
            os.seteuid(0)
    assert len(told) == kinds
    assert all(f"{folder / unreadable} may not be read by this process, which runs as user 65534; let it" in one for one in told)


def test_a_revision_is_of_the_hub_and_not_of_a_url() -> None:
    with pytest.raises(ModelError, match="`revision` is of the hub"):
        locate_model("s3://bucket/model", "main")
