"""Which URLs of configurations a worker reads, that none it refuses gives a secret away, and what overrides do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.parameters import ALLOWED_VARIABLE, check_url, resolve_parameter
from miniplm.config.run import RunConfig
from miniplm.errors import ConfigError

CONTENT: dict[str, Any] = {
    "name": "small",
    "corpus": {"sources": [{"path": "/corpus/*.jsonl", "domain_name": "all"}], "tokenizer": "tokenizer"},
    "teacher": {"model": "teacher"},
    "reference": {"model": "reference"},
}


@pytest.fixture(autouse=True)
def _any_url_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOWED_VARIABLE, raising=False)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(CONTENT), encoding="utf-8")
    return path


# --- what is given ---


def test_a_configuration_that_is_given_whole_is_taken_as_it_is() -> None:
    config = RunConfig.model_validate(CONTENT)
    assert resolve_parameter(config) is config


def test_overrides_change_a_configuration_that_is_given_whole() -> None:
    config = RunConfig.model_validate(CONTENT)
    changed = resolve_parameter(config, ["selection.ratio=0.3", "corpus.sources.0.domain_name=news"])
    assert (changed.selection.ratio, changed.corpus.sources[0].domain_name) == (0.3, "news")
    assert config.selection.ratio == 0.5
    assert changed.model_copy(update={"selection": config.selection, "corpus": config.corpus}) == config


def test_an_override_that_breaks_a_rule_is_refused_in_the_name_of_the_run() -> None:
    with pytest.raises(ConfigError, match=r"run small is not a valid run configuration:\n  selection.ratio: .*\(got 2\)"):
        resolve_parameter(RunConfig.model_validate(CONTENT), ["selection.ratio=2"])


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_file_is_read_by_path_or_url_and_overrides_change_it(config_file: Path, prefix: str) -> None:
    config = resolve_parameter(f"{prefix}{config_file}", ["selection.ratio=0.25"])
    assert (config.name, config.selection.ratio) == ("small", 0.25)


def test_a_url_that_is_refused_is_not_read(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_VARIABLE, "s3://bucket/configs")
    with pytest.raises(ConfigError, match="is not below what this worker may read"):
        resolve_parameter(str(config_file))


# --- protocols and paths ---


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/refine.yaml",
        "gs://bucket/refine.yaml",
        "gcs://bucket/refine.yaml",
        "https://host:8443/configs/refine.yaml",
        "file:///configs/refine.yaml",
        "/configs/refine.yaml",
        "/configs/is it?.yaml",
        "s3://bucket/by@team/refine.yaml",
    ],
)
def test_plain_urls_and_absolute_paths_may_be_read(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://host/refine.yaml",
        "ftp://host/refine.yaml",
        "memory://refine.yaml",
        "zip://refine.yaml",
        "local:///etc/passwd",
        "FILE:///etc/passwd",
        "S3://bucket/refine.yaml",
        " file:///etc/passwd",
        "/x://refine.yaml",
        "simplecache::s3://bucket/refine.yaml",
        "zip://refine.yaml::s3://bucket/all.zip",
        "s3://bucket/refine.yaml::file:///etc/passwd",
        "simplecache::/etc/passwd",
        "https://host/configs/.\t./refine.yaml",
        "https://host/configs/.\n./refine.yaml",
    ],
)
def test_other_protocols_chains_and_control_characters_are_refused(url: str) -> None:
    with pytest.raises(
        ConfigError, match="is read from an absolute path or a plain URL of s3://, gs://, gcs://, https://, file://"
    ):
        check_url(url)


@pytest.mark.parametrize("url", ["refine.yaml", "./refine.yaml", "../refine.yaml", "~/refine.yaml"])
def test_a_relative_path_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"is a relative path, and a worker has no folder of yours"):
        check_url(url)


# fsspec reads these below the working folder and below the user's home.
@pytest.mark.parametrize("url", ["file://refine.yaml", "file://etc/passwd", "file://localhost/etc/passwd", "file://~/refine.yaml"])
def test_a_file_url_without_an_absolute_path_is_a_relative_path_too(url: str) -> None:
    with pytest.raises(ConfigError, match=r"is a relative path, and a worker has no folder of yours"):
        check_url(url)


# --- secrets ---


@pytest.mark.parametrize("allowed", ["", "s3://bucket/configs"])
@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hush@bucket/refine.yaml",
        "s3://hush@bucket/refine.yaml",
        "s3://key:pass/hush@bucket/refine.yaml",
        "https://user:hush@host/refine.yaml",
        "https://host/refine.yaml?X-Amz-Signature=hush",
        "https://host/refine.yaml?versionId=hush",
        "https:/user:hush@host/refine.yaml",
        "user:hush@host/refine.yaml",
        "host/refine.yaml?sig=hush",
        # Refused for other reasons as well, which must not be told first.
        "ftp://user:hush@host/refine.yaml",
        "http://host/refine.yaml?sig=hush",
        "HTTPS://user:hush@host/refine.yaml",
        "simplecache::s3://key:hush@bucket/refine.yaml",
        "https://host/\nrefine.yaml?sig=hush",
    ],
)
def test_credentials_and_queries_are_refused_and_never_repeated(url: str, allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_VARIABLE, allowed)
    with pytest.raises(ConfigError, match="the URL holds credentials or a query") as caught:
        check_url(url)
    assert "hush" not in str(caught.value)


# --- the allow-list ---

ALLOWED = "s3://bucket/configs https://host/team/ /mnt/configs file:///srv/one.yaml"


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/configs/refine.yaml",
        "s3://bucket/configs/2026/a..b.yaml",
        "https://host/team/refine.yaml",
        "/mnt/configs/refine.yaml",
        "file:///mnt/configs/refine.yaml",
        "/srv/one.yaml",
        "file:///srv/one.yaml",
    ],
)
def test_what_is_below_an_allowed_url_may_be_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_VARIABLE, ALLOWED)
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/refine.yaml",
        "s3://other/configs/refine.yaml",
        "gs://bucket/configs/refine.yaml",
        "/etc/passwd",
        "file:///etc/passwd",
        "/srv/one.yaml.old",
        # Names that only begin alike.
        "s3://bucket/configs-evil/refine.yaml",
        "https://host/teamwork/refine.yaml",
        "https://host.evil.example/team/refine.yaml",
        "/mnt/configs2/refine.yaml",
        # Ways up.
        "s3://bucket/configs/../refine.yaml",
        "/mnt/configs/../../etc/passwd",
        "file:///mnt/configs/../../etc/passwd",
        "/mnt/configs/..",
        "https://host/team/%2e%2e/refine.yaml",
        "https://host/team/%2E./refine.yaml",
        "https://host/team/..%2frefine.yaml",
        "https://host/team/..\\refine.yaml",
    ],
)
def test_what_is_not_below_an_allowed_url_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_VARIABLE, ALLOWED)
    with pytest.raises(
        ConfigError, match=r"is not below what this worker may read \(MINIPLM_CONFIG_URLS: s3://bucket/configs, https"
    ):
        check_url(url)


def test_a_whole_bucket_a_whole_protocol_and_all_local_files_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_VARIABLE, "s3://bucket")
    check_url("s3://bucket/refine.yaml")
    with pytest.raises(ConfigError, match="is not below"):
        check_url("s3://bucket2/refine.yaml")
    monkeypatch.setenv(ALLOWED_VARIABLE, "gs:// /")
    check_url("gs://bucket/refine.yaml")
    check_url("file:///configs/refine.yaml")
    with pytest.raises(ConfigError, match="is not below"):
        check_url("s3://bucket/refine.yaml")


def test_an_empty_allow_list_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_VARIABLE, "  ")
    check_url("s3://anywhere/refine.yaml")
