"""What an object store's refusals mean: what failed, at which URL, why, and what to do. Never a key, secret or token."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import urlsplit

from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError

from miniplm.errors import first_line

# Stores allow 15 minutes between their clock and the time in a signature.
_SKEW_SECONDS = 900.0
# Answers that s3fs and its callers know how to take, and that say nothing against the store.
_PLAIN_CODES = frozenset({"NoSuchKey", "404", "NoSuchUpload", "NoSuchVersion", "PreconditionFailed", "412", "InvalidRange", "416"})

_VERBS = {"head_object": "read", "head_bucket": "read", "get_object": "read", "list_objects_v2": "list", "delete_objects": "delete"}
_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the profile or Prefect block they come from)"


def find_response(error: BaseException) -> dict[str, Any] | None:
    """The parsed answer of the store that an error stands for; None where there was no answer."""
    for candidate in (error, error.__cause__):
        if isinstance(candidate, ClientError):
            return cast(dict[str, Any], candidate.response)
    return None


def is_plain_answer(error: BaseException) -> bool:
    """Whether an error only says that something is not there, or not as the caller assumed."""
    response = find_response(error)
    return response is not None and response["Error"].get("Code") in _PLAIN_CODES


def read_clock_skew(error: BaseException) -> float | None:
    """Seconds by which this machine's clock is ahead of the store's, where that is more than stores allow."""
    response = find_response(error)
    headers = {} if response is None else response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        served = parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError, TypeError):
        return None
    skew = (datetime.now(UTC) - served).total_seconds()
    return skew if abs(skew) > _SKEW_SECONDS else None


def explain_refusal(error: BaseException, method: str, endpoint: str, request: Mapping[str, Any]) -> str:
    """Why a store will not do what it was asked, now or later."""
    return f"{_say_what(method, request)}: {_find_reason(error, _say_where(endpoint), request)}"


def explain_unavailable(
    error: BaseException, method: str, endpoint: str, request: Mapping[str, Any], num_tries: int, seconds: float
) -> str:
    """What a store did when the budget of tries was spent."""
    response = find_response(error)
    where = _say_where(endpoint)
    if response is None:
        kind = type(error).__name__
        reason = f"the store{where} cannot be reached or does not answer to the end ({kind})"
        advice = "check that it runs and that the endpoint is right (AWS_ENDPOINT_URL or the Prefect block)"
    else:
        reason = f"the store{where} answers {_describe_code(response)}"
        advice = "it throttles or is in trouble: give it time, or fewer workers at once"
    tries = f"{num_tries} tries in {seconds:.0f} s" if num_tries > 1 else f"1 try of {seconds:.0f} s"
    return f"{_say_what(method, request)}: {reason}, after {tries}; {advice}, then run the same command again: what is finished is kept"


def _find_reason(error: BaseException, where: str, request: Mapping[str, Any]) -> str:
    if isinstance(error, NoCredentialsError):
        return f"there are no credentials. Set {_CREDENTIALS}"
    if isinstance(error, PartialCredentialsError):
        return f"the credentials are incomplete ({first_line(error)}). Set {_CREDENTIALS}"
    response = find_response(error)
    if response is None:
        return f"{type(error).__name__}: {first_line(error)}. Check `storage` and the endpoint (AWS_ENDPOINT_URL)"
    code = str(response["Error"].get("Code"))
    skew = read_clock_skew(error)
    if code == "RequestTimeTooSkewed" or (code in ("403", "400") and skew is not None):
        by = f" by {_describe_seconds(abs(skew))} ({'ahead' if skew > 0 else 'behind'})" if skew is not None else ""
        return f"this machine's clock differs from the store's{by}, and a signature is good for 15 minutes ({code}). Set the clock right (NTP)"
    if code == "NoSuchBucket":
        return f"the bucket {request.get('Bucket')} does not exist{where}. Make it, or name another one in `storage` or the source's path"
    if code == "SignatureDoesNotMatch":
        return f"the store{where} does not accept the signature ({code}): the secret is wrong. Check {_CREDENTIALS}"
    if code in ("InvalidAccessKeyId", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"):
        return f"the store{where} does not know these credentials, or they have expired ({code}). Check {_CREDENTIALS}"
    if code in ("AccessDenied", "AllAccessDisabled", "403"):
        return (
            f"the store{where} denies it to these credentials ({code}). They need to read, write, delete and list in bucket "
            f"{request.get('Bucket')}; check its policy, and {_CREDENTIALS}"
        )
    return f"the store{where} refuses it ({_describe_code(response)}). Check `storage`, the endpoint and the region"


def _say_what(method: str, request: Mapping[str, Any]) -> str:
    verb = _VERBS.get(
        method, "write" if method.startswith(("put_", "upload_", "create_", "complete_")) else method.replace("_", " ")
    )
    key = request.get("Key", request.get("Prefix", "")) or ""
    return f"cannot {verb} s3://{request.get('Bucket', '')}/{key}"


def _say_where(endpoint: str) -> str:
    """The endpoint without whatever else its URL holds, such as a password."""
    parts = urlsplit(endpoint)
    if not parts.hostname:
        return ""
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f" at {parts.scheme}://{parts.hostname}{port}"


def _describe_code(response: Mapping[str, Any]) -> str:
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code, message = str(response["Error"].get("Code", "")), str(response["Error"].get("Message", "")).strip()
    start = code if code == str(status) or status is None else f"{status} {code}"
    return f"{start}: {message[:200]}" if message else start


def _describe_seconds(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.0f} minutes"
