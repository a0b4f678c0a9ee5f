"""What a library raises about a user's file becomes one of our errors; what is no fault of the file does not."""

from __future__ import annotations

import errno

import pytest

from miniplm.errors import ConfigError, ModelError, TokenizerError, reading_users_file


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
        ConnectionResetError(errno.ECONNRESET, "reset"),
        KeyboardInterrupt(),
        TokenizerError("said already"),
    ],
)
def test_what_is_no_fault_of_the_file_goes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, reading_users_file("/m", "cannot be loaded", "copy it again", ModelError):
        raise error
    assert caught.value is error
