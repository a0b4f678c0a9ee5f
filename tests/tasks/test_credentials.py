"""Credentials out of a real block of a real Prefect server."""

from __future__ import annotations

import json
import os

import pytest

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"

import fsspec.config
from prefect.blocks.system import Secret

from miniplm.errors import ConfigError, StorageError
from miniplm.storage.root import Storage
from tasks.credentials import use_credentials_block

pytestmark = pytest.mark.usefixtures("on_prefect_server")


@pytest.fixture(autouse=True)
def configuration(monkeypatch):
    monkeypatch.setattr(fsspec.config, "conf", {})


def save(name, value):
    Secret(value=value).save(name, overwrite=True)


# As it comes out of the UI, and as a mapping that was saved from Python.
@pytest.mark.parametrize("make", [json.dumps, dict])
def test_a_block_opens_the_store_without_anything_in_the_environment(s3_server, monkeypatch, make):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    credentials = {"key": s3_server.key, "secret": s3_server.secret, "endpoint_url": s3_server.endpoint}
    save("s3-credentials", make(credentials))
    use_credentials_block("s3-credentials")
    storage = Storage(f"s3://{s3_server.bucket}/from-block")
    storage.write_bytes("a", b"a")
    assert storage.read_bytes("a") == b"a"
    save("s3-credentials", make({**credentials, "secret": "of-yesterday"}))
    use_credentials_block("s3-credentials")
    with pytest.raises(StorageError, match="the secret is wrong") as raised:
        Storage(f"s3://{s3_server.bucket}/from-block").write_bytes("a", b"a")
    assert "of-yesterday" not in str(raised.value)


def test_a_block_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match=r"no Secret block named 'nowhere' \(MINIPLM_S3_BLOCK names it\); make it in the UI"):
        use_credentials_block("nowhere")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("hunter2", "does not hold a JSON mapping"),
        ({"key": "hunter2"}, "secret is missing"),
        ({"key": "k", "secret": "hunter2", "endpoint": "http://x"}, "endpoint is not known"),
        ({"key": "k", "secret": "hunter2", "token": ["x"]}, "token is no text"),
    ],
)
def test_a_block_of_another_shape_is_told_without_its_content(value, told):
    save("wrong", value)
    with pytest.raises(ConfigError, match=told) as raised:
        use_credentials_block("wrong")
    assert "hunter2" not in str(raised.value)
    assert "s3" not in fsspec.config.conf
