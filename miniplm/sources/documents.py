"""What is read from a source: a document, or a record that was rejected with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Reason = Literal[
    "malformed_json",
    "not_an_object",
    "missing_text",
    "null_text",
    "text_not_a_string",
    "invalid_utf8",
    "not_text",
    "empty_document",
    "missing_domain",
    "domain_not_a_string",
    "no_tokens",
]

_EXCERPT_CHARACTERS = 500


class Origin(NamedTuple):
    """Where a record is: a file, and in it a line (from 1), a Parquet row (from 0) or the whole file (number 1)."""

    path: str
    unit: Literal["line", "row", "file"]
    number: int


# With slots, as a corpus has millions of them: they are made faster, and are smaller.
@dataclass(frozen=True, slots=True)
class Document:
    """A usable record. `text` is valid UTF-8 once encoded, which takes `num_bytes`."""

    document_id: int
    origin: Origin
    domain: str
    text: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that holds no usable document; `excerpt` is the start of what is there."""

    document_id: int
    origin: Origin
    reason: Reason
    message: str
    excerpt: str

    def as_json(self) -> dict[str, Any]:
        """A row of the quarantine: `source`, `line` or `row`, `document_id`, `reason`, `message`, `excerpt`."""
        return {
            "source": self.origin.path,
            self.origin.unit: self.origin.number,
            "document_id": self.document_id,
            "reason": self.reason,
            "message": self.message,
            "excerpt": self.excerpt,
        }


SourceRecord = Document | Rejection
SourceRecords = Iterator[SourceRecord]


class _Missing:
    """The value of a field that is not there; None is a value."""


MISSING = _Missing()


def make_excerpt(content: str | bytes) -> str:
    """The first 500 characters, with a replacement for what is not valid text."""
    if isinstance(content, bytes):
        return content[: 4 * _EXCERPT_CHARACTERS].decode("utf-8", "replace")[:_EXCERPT_CHARACTERS]
    return content[:_EXCERPT_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def check_source_record(
    document_id: int, origin: Origin, text: Any, domain: Any, text_field: str, domain_field: str, excerpt: str
) -> SourceRecord:
    """The document that a text and a domain make, or the rejection with the first fault found.

    Bytes count as text or domain where they are UTF-8 (Parquet columns without a string annotation).
    """

    def reject(reason: Reason, message: str) -> Rejection:
        return Rejection(document_id, origin, reason, message, excerpt)

    if text is MISSING:
        return reject("missing_text", f"there is no field {text_field!r}")
    if text is None:
        return reject("null_text", f"the field {text_field!r} is null")
    if not isinstance(text, str | bytes):
        return reject("text_not_a_string", f"the field {text_field!r} is a {type(text).__name__}, not a string")
    try:
        text, num_bytes = _check_utf8(text)
    except UnicodeError as error:
        return reject("invalid_utf8", f"the field {text_field!r} is not valid UTF-8: {_describe_unicode_error(error)}")
    if not text or text.isspace():
        return reject(
            "empty_document", f"the field {text_field!r} holds only whitespace" if text else f"the field {text_field!r} is empty"
        )
    if domain is MISSING or domain is None:
        return reject("missing_domain", f"the field {domain_field!r} is {'null' if domain is None else 'not there'}")
    if not isinstance(domain, str | bytes):
        return reject("domain_not_a_string", f"the field {domain_field!r} is a {type(domain).__name__}, not a string")
    try:
        domain, _ = _check_utf8(domain)
    except UnicodeError as error:
        return reject("invalid_utf8", f"the field {domain_field!r} is not valid UTF-8: {_describe_unicode_error(error)}")
    if not domain or domain.isspace():
        return reject("missing_domain", f"the field {domain_field!r} is empty")
    return Document(document_id, origin, domain, text, num_bytes)


def _check_utf8(value: str | bytes) -> tuple[str, int]:
    """The string and the length of its UTF-8. Raises `UnicodeError` for a lone surrogate or bytes that are not UTF-8."""
    if isinstance(value, bytes):
        return value.decode("utf-8"), len(value)
    return value, len(value.encode("utf-8"))


def _describe_unicode_error(error: UnicodeError) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"a lone surrogate at character {error.start}"
    return f"{error.reason} at byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
