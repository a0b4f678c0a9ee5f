"""One policy of trying again, drawn as it is; what a library raises about a user's file becomes one of our errors, what is no fault of the file does not."""

from __future__ import annotations

import ast
import builtins
import errno
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import botocore.exceptions
import httpx
import huggingface_hub.errors
import pytest
import torch

from miniplm import errors
from miniplm.errors import (
    ConfigError,
    DamagedFileError,
    DeviceError,
    ModelError,
    NoDeviceError,
    RunFailedError,
    StorageError,
    StorageUnavailableError,
    TokenizerError,
    TrainingProcessError,
    find_error_class,
    is_lasting,
    is_passing,
    judge_retry,
    reading_users_file,
)

ROOT = Path(__file__).parents[2]
OURS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}


class PanicException(BaseException):
    """As pyo3 raises where Rust code panics."""


@pytest.mark.parametrize(
    "error", [ValueError("a\nb"), KeyError("x"), ImportError("no optimum"), AttributeError("x"), PanicException("x")]
)
def test_any_error_of_a_library_becomes_ours_with_file_reason_and_next_step(error: BaseException) -> None:
    with (
        pytest.raises(ModelError, match=rf"^/m/teacher cannot be loaded \({type(error).__name__}: .*\); copy it again$"),
        reading_users_file("/m/teacher", "cannot be loaded", "copy it again", ModelError),
    ):
        raise error


def test_a_file_that_cannot_be_read_since_it_is_a_pointer_of_git_lfs_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with (
        pytest.raises(ConfigError, match=r"run\.yaml is a pointer of git-lfs and not the file itself; run `git lfs pull` in "),
        reading_users_file(tmp_path / "run.yaml", "is not valid YAML", "mend it", ConfigError),
    ):
        raise ValueError("whatever the library says of it")


def test_the_reason_holds_the_lines_after_the_first() -> None:
    with (
        pytest.raises(ConfigError, match=r"Validation error for field 'layers': expected int, got 2\.0"),
        reading_users_file("config.json", "cannot be used", "mend it", ConfigError),
    ):
        raise ValueError("Validation error for field 'layers':\n    expected int, got 2.0")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        httpx.ConnectError("All connection attempts failed"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        KeyboardInterrupt(),
        TokenizerError("said already"),
    ],
)
def test_what_is_no_fault_of_the_file_goes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, reading_users_file("/m", "cannot be loaded", "copy it again", ModelError):
        raise error
    assert caught.value is error


def refusal(status: int, code: str) -> botocore.exceptions.ClientError:
    answer = {"Error": {"Code": code, "Message": "x"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(answer, "GetObject")  # type: ignore[arg-type]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def http_error(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://store")
    return httpx.HTTPStatusError("x", request=request, response=httpx.Response(status, request=request))


def hub_error(status: int) -> huggingface_hub.errors.HfHubHTTPError:
    answered: Any = http_error(status).response
    return huggingface_hub.errors.HfHubHTTPError("x", response=answered)


def test_the_tree_at_the_head_of_the_module_is_the_class_tree_with_its_attribute() -> None:
    drawn = re.findall(r"^    ( *)(\w+Error) +(never|elsewhere|here)\b", errors.__doc__ or "", re.MULTILINE)
    above: list[str] = []
    parents, judged = {}, {}
    for indent, name, retry in drawn:
        depth = len(indent) // 2
        above[depth:] = [name]
        parents[name], judged[name] = above[depth - 1] if depth else None, retry
    assert len(drawn) == len(judged)
    assert judged == {name: kind.retry for name, kind in OURS.items()}  # type: ignore[attr-defined]
    assert parents == {name: kind.__base__.__name__ if kind.__base__.__name__ in OURS else None for name, kind in OURS.items()}


def test_every_error_class_of_this_project_belongs_to_the_tree() -> None:
    found = {
        node.name
        for folder in ("miniplm", "tasks", "flows")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(
            name in OURS or issubclass(getattr(builtins, name, object), BaseException)
            for base in node.bases
            for name in [ast.unparse(base).rsplit(".", 1)[-1]]
        )
    }
    assert found == set(OURS)


def test_an_error_class_is_found_by_its_name_and_nothing_else_is() -> None:
    assert {name: find_error_class(name) for name in OURS} == OURS
    assert [find_error_class(name) for name in ("Path", "annotations", "Retry", "ValueError", "__doc__", "")] == [None] * 6


def test_the_policy_costs_no_import_of_what_it_knows() -> None:
    code = "import sys, miniplm.errors; print(sorted({'torch', 'botocore', 'aiohttp', 'httpx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (ConfigError("x"), "never"),
        (DamagedFileError("x"), "never"),
        (StorageError("x"), "elsewhere"),
        (StorageUnavailableError("x"), "here"),
        (TrainingProcessError("x"), "here"),
        (DeviceError("x"), "here"),
        (NoDeviceError("x"), "elsewhere"),
        (RunFailedError("x"), "elsewhere"),
        # The operating system's, by number; where there is none, by class; where there is neither, it may be a lost connection.
        (OSError(errno.EIO, "x"), "here"),
        (OSError(errno.ENOMEM, "x"), "here"),
        (OSError(errno.EMFILE, "x"), "here"),
        (OSError(errno.ECONNRESET, "x"), "here"),
        (OSError(errno.ENETUNREACH, "x"), "here"),
        (OSError(errno.ENOSPC, "x"), "elsewhere"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "here"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "elsewhere"),
        (OSError(errno.EROFS, "x"), "elsewhere"),
        (OSError(errno.ENOENT, "x"), "elsewhere"),
        (OSError(errno.EACCES, "x"), "elsewhere"),
        (OSError(errno.ENAMETOOLONG, "x"), "elsewhere"),
        (ConnectionError(), "here"),
        (TimeoutError(), "here"),
        (OSError("connection reset"), "here"),
        (FileNotFoundError("x"), "elsewhere"),
        (PermissionError("x"), "elsewhere"),
        # Memory and devices.
        (MemoryError(), "here"),
        (torch.OutOfMemoryError("CUDA out of memory"), "here"),
        (torch.OutOfMemoryError(), "here"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "here"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "elsewhere"),
        # Clients of object stores: no answer, an answer that says later, an answer that refuses.
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://store"), "here"),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="http://store"), "here"),
        (botocore.exceptions.SSLError(endpoint_url="http://store", error="CERTIFICATE_VERIFY_FAILED"), "elsewhere"),
        (botocore.exceptions.NoCredentialsError(), "elsewhere"),
        (refusal(503, "SlowDown"), "here"),
        (refusal(400, "RequestTimeout"), "here"),
        (refusal(403, "AccessDenied"), "elsewhere"),
        (caused(OSError(errno.EIO, "x"), refusal(503, "SlowDown")), "here"),
        (caused(OSError(errno.EIO, "x"), refusal(400, "InvalidRequest")), "elsewhere"),
        (caused(OSError("x"), refusal(403, "AccessDenied")), "elsewhere"),
        (aiohttp.ClientPayloadError("x"), "here"),
        (aiohttp.ServerDisconnectedError(), "here"),
        (httpx.ConnectError("x"), "here"),
        (httpx.ReadTimeout("x"), "here"),
        (http_error(502), "here"),
        (hub_error(503), "here"),
        (hub_error(404), "elsewhere"),
        (huggingface_hub.errors.OfflineModeIsEnabled("x"), "elsewhere"),
        (huggingface_hub.errors.LocalEntryNotFoundError("x"), "elsewhere"),
        (http_error(404), "elsewhere"),
        # Whatever else may be a fault of this machine's set-up, never a reason to try the same here.
        (ValueError("x"), "elsewhere"),
        (RuntimeError("shape"), "elsewhere"),
        (ImportError("x"), "elsewhere"),
        (KeyboardInterrupt(), "elsewhere"),
        # Several at once are tried again where each of them is.
        (ExceptionGroup("x", [OSError(errno.EIO, "x"), MemoryError()]), "here"),
        (ExceptionGroup("x", [OSError(errno.EIO, "x"), ModelError("x")]), "never"),
    ],
)
def test_any_error_is_judged_in_one_place(error: BaseException, retry: str) -> None:
    assert judge_retry(error) == retry
    assert (is_passing(error), is_lasting(error)) == (retry == "here", retry == "never")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "x"),
        FileNotFoundError(errno.ENOENT, "x"),
        OSError("Thrift: no more data to read"),
        # The hub has no such file, or not for this user; the store neither.
        http_error(404),
        http_error(401),
        hub_error(404),
        huggingface_hub.errors.OfflineModeIsEnabled("x"),
        huggingface_hub.errors.LocalEntryNotFoundError("x"),
        refusal(403, "AccessDenied"),
        botocore.exceptions.NoCredentialsError(),
    ],
)
def test_what_the_system_or_a_store_says_of_the_users_file_is_a_fault_of_the_file(error: Exception) -> None:
    with (
        pytest.raises(ModelError, match=r"^/m cannot be loaded"),
        reading_users_file("/m", "cannot be loaded", "copy it", ModelError),
    ):
        raise error
