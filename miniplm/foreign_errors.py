"""What the errors of others (the operating system, PyTorch, the clients of object stores) say of the machine and the network.

`judge_foreign_error` knows them by number, class name and words, so that nothing heavy is imported here.
"""

from __future__ import annotations

import errno
import socket
from typing import Any, Literal

# Passes by itself: a connection, a time-out, a table of the kernel that is full at this moment.
_PASSING_ERRNOS = frozenset(
    {errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ENOBUFS}
    | {errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN, errno.ESHUTDOWN}
    | {errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.EREMOTEIO}
    | {socket.EAI_AGAIN}  # the name server does not answer now
)
# The machine's state too, which a person changes: its disk is full, or can be read only.
_MACHINE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
# Errors of the operating system that may come without a number.
_PASSING_CLASSES = (ConnectionError, TimeoutError, BlockingIOError, InterruptedError)

# Errors after which a CUDA context is of no use any more, whichever library raises them.
_LOST_TEXTS = (
    "illegal memory access",
    "unspecified launch failure",
    "device-side assert",
    "misaligned address",
    "uncorrectable ecc",
    "hardware stack error",
    "fallen off the bus",
    "cuda error: unknown error",
    "devices are busy or unavailable",
    "gpu is lost",
)
# Errors that say there is no memory left without saying "out of memory".
_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")

# The clients of object stores, and of the web; and their classes that say that no answer came, or not a whole one.
_CLIENTS = frozenset(
    {
        *("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure"),
        *("urllib3", "requests", "httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub"),
    }
)
_NO_ANSWER = frozenset(
    {
        *("botocore.HTTPClientError", "botocore.ConnectionError", "botocore.ResponseParserError"),
        *("botocore.IncompleteReadError", "botocore.FlexibleChecksumError"),
        *("aiohttp.ClientConnectionError", "aiohttp.ClientPayloadError"),
        *("httpx.TransportError", "httpcore.NetworkError", "httpcore.TimeoutException", "httpcore.ProtocolError"),
        *("httpx2.TransportError", "httpcore2.NetworkError", "httpcore2.TimeoutException", "httpcore2.ProtocolError"),
        *("requests.ConnectionError", "requests.Timeout", "requests.ChunkedEncodingError"),
        *("urllib3.TimeoutError", "urllib3.ProtocolError", "urllib3.MaxRetryError"),
        *("azure.ServiceRequestError", "azure.ServiceResponseError", "google.TransportError", "google.RetryError"),
    }
)
# Answers after which the same request may go well in a moment.
_PASSING_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_PASSING_CODES = frozenset(
    {
        *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "RequestTimeout"),
        *("InternalError", "ServiceUnavailable", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),
        *("OperationAborted", "ConditionalRequestConflict"),
    }
)


def judge_foreign_error(error: BaseException) -> Literal["here", "elsewhere"] | None:
    """What another try may do about a fault of the machine, the device or the way to a store; None for an error of another kind.

    `here`: in a moment, in this process, it may be gone. `elsewhere`: on another machine, or in another process.
    """
    if is_out_of_memory(error):
        return "here"
    if is_device_lost(error):
        return "elsewhere"  # this process cannot use the device any more
    if (judged := _judge_store_client(error)) is not None:
        return judged
    if isinstance(error, OSError):
        if error.errno in _MACHINE_ERRNOS:
            return "elsewhere"
        if error.errno in _PASSING_ERRNOS or isinstance(error, _PASSING_CLASSES):
            return "here"
    return None


def is_machines_fault(error: BaseException) -> bool:
    """Whether an error is no fault of what was read: the machine's or the network's state, not a refusal by the file's holder."""
    if judge_foreign_error(error) == "here" or is_device_lost(error):
        return True
    return isinstance(error, OSError) and error.errno in _MACHINE_ERRNOS


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the host had no memory left for an allocation."""
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "OutOfMemoryException"):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(text in message for text in _MEMORY_TEXTS)


def is_device_lost(error: BaseException) -> bool:
    """Whether an error says that the device itself failed, so that this process cannot use it any more."""
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(text in message for text in _LOST_TEXTS)


def _judge_store_client(error: BaseException) -> Literal["here", "elsewhere"] | None:
    answer = _find_answer(error)
    if answer is not None:
        status, code = answer
        return "here" if status in _PASSING_STATUSES or code in _PASSING_CODES else "elsewhere"
    if not _list_packages(error) & _CLIENTS:
        return None
    if "CERTIFICATE_VERIFY_FAILED" in str(error) or any(
        kind.__name__ == "SSLCertVerificationError" for kind in type(error).__mro__
    ):
        return "elsewhere"
    names = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return "here" if names & _NO_ANSWER else "elsewhere"


def _find_answer(error: BaseException) -> tuple[int | None, str] | None:
    """Status and code of the answer that an error stands for, whether it is a client's own or s3fs's translation of it."""
    for candidate in (error, error.__cause__):
        response: Any = getattr(candidate, "response", None)
        if isinstance(response, dict) and isinstance(response.get("Error"), dict):  # botocore
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode"), str(response["Error"].get("Code"))
        if candidate is None or not (packages := _list_packages(candidate)) & _CLIENTS:
            continue
        # aiohttp and azure; httpx and requests; gcsfs and google
        found: tuple[object, ...] = (
            getattr(candidate, "status", None),
            getattr(candidate, "status_code", None),
            getattr(response, "status_code", None),
        )
        if packages & {"gcsfs", "google"}:
            found = (getattr(candidate, "code", None), *found)
        for status in found:
            if isinstance(status, int) and status >= 400:
                return int(status), ""
    return None


def _list_packages(error: BaseException) -> set[str]:
    """The packages that an error's classes are of."""
    return {kind.__module__.split(".")[0] for kind in type(error).__mro__}
