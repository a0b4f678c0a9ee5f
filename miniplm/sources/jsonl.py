"""JSON Lines: one object a line, each a document or a rejection; blank lines are no records."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from miniplm.config.run import SourceConfig
from miniplm.errors import DamagedSourceError
from miniplm.sources.blocks import BytesCallback, peek_blocks, read_blocks
from miniplm.sources.documents import (
    MISSING,
    Document,
    Origin,
    Rejection,
    SourceRecord,
    SourceRecords,
    check_source_record,
    make_excerpt,
)
from miniplm.sources.files import SourceFile
from miniplm.sources.parts import SourcePart, SourceParts, count_skipped
from miniplm.sources.signatures import recognise_format

# Integers of any length are read: as floats, since no integer field is used, which never fails. Python refuses to make an integer of
# more than 4,300 digits, and one such number would cost its document.
_DECODER = json.JSONDecoder(parse_int=float)
# orjson reads deeper ones than Python's decoder, which says how deep is too deep; brackets in texts count too, and cost only time.
_SAFE_BRACKETS = 500
_ARRAY_OF_OBJECTS = re.compile(r"\[\s*\{")
_OPENED_OBJECT = re.compile(r"\{[ \t\r]*\n\s*[\"}]")


def read_jsonl_parts(
    file: SourceFile, source: SourceConfig, first_document_id: int, num_skipped: int, on_bytes: BytesCallback
) -> SourceParts:
    """Whole lines of a file, about a block of them at a time; the first record of all is document `first_document_id`.

    Raises `DamagedSourceError` where a compressed file is truncated or damaged, and where the content is of another kind,
    all of whose documents would be lost behind a few rejections.
    """
    head, blocks = peek_blocks(read_blocks(file, on_bytes))
    _check_text(file, head)
    _check_lines(file, head.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace").lstrip())
    first_record, number = 0, 1
    for content in _join_lines(blocks):
        if number == 1:
            content = content.removeprefix(codecs.BOM_UTF8)
        lines = content.split(b"\n")
        num_records = sum(1 for line in lines if line and not line.isspace())
        skipped = count_skipped(first_record, num_records, num_skipped)
        if skipped < num_records:
            yield SourcePart(
                file.path, source, first_document_id + first_record, number, num_records, skipped, content, len(content)
            )
        first_record += num_records
        number += len(lines) - 1


def parse_jsonl(part: SourcePart) -> SourceRecords:
    """The records of some lines."""
    document_id = part.first_document_id
    first_wanted = document_id + part.num_skipped
    for number, line in enumerate(part.content.split(b"\n"), start=part.first_number):
        if not line or line.isspace():
            continue
        if document_id >= first_wanted:
            yield _read_line(document_id, Origin(part.path, "line", number), line, part.source)
        document_id += 1


def read_json_values(file: SourceFile, field: str) -> Iterator[Any]:
    """What a field holds in each record, `MISSING` where there is none; as many as `read_jsonl` gives."""
    for content in _read_contents(file):
        yield find_field(content, field) if isinstance(content, dict) else MISSING


def list_json_fields(file: SourceFile) -> list[str]:
    """The fields of the first object of a file, those inside objects with dots."""

    def list_inside(prefix: str, content: dict[str, Any]) -> list[str]:
        names: list[str] = []
        for key, value in content.items():
            names += list_inside(f"{prefix}{key}.", value) if isinstance(value, dict) else [f"{prefix}{key}"]
        return names

    return next((list_inside("", content) for content in _read_contents(file) if isinstance(content, dict)), [])


def _read_contents(file: SourceFile) -> Iterator[Any]:
    for index, content in enumerate(_join_lines(read_blocks(file, lambda num_bytes: None))):
        for line in (content if index else content.removeprefix(codecs.BOM_UTF8)).split(b"\n"):
            if not line or line.isspace():
                continue
            try:
                yield _DECODER.decode(line.decode("utf-8"))
            except (ValueError, RecursionError):  # a rejected record, which has no field
                yield None


def _check_text(file: SourceFile, head: bytes) -> None:
    found = recognise_format(head)
    if found is None:
        return
    if found.name == "a Parquet file":
        advice = "set `format: parquet`"
    elif found.kind == "encoding":
        advice = f"write it anew as UTF-8, e.g. `iconv -f {found.name.split()[0]} -t UTF-8`"
    else:
        advice = "name other files in corpus.sources, or make JSON Lines of it"
    raise DamagedSourceError(f"{file.path} holds {found.name}, not JSON Lines in UTF-8; {advice}")


def _check_lines(file: SourceFile, head: str) -> None:
    """Refuses an array of objects, objects that no newline separates, and one over several lines: no document would be left of them."""
    line, _, rest = head.partition("\n")
    try:
        value, end = _DECODER.raw_decode(line)
    except (ValueError, RecursionError):
        value, end = None, 0
    if end and rest.strip():
        return  # there are lines: one that is at fault is a rejection
    if _OPENED_OBJECT.match(head) or (not end and _is_object(head)):
        found, advice = "a JSON object over several lines", "jq -c ."
    elif _ARRAY_OF_OBJECTS.match(head):
        found, advice = "a JSON array", "jq -c '.[]'"
    elif isinstance(value, dict) and line[end:].lstrip().startswith(("{", ",")):
        found, advice = "several JSON objects in one line", "jq -c ."
    else:
        return
    raise DamagedSourceError(f"{file.path} holds {found}, not JSON Lines; put each object on a line of its own, e.g. `{advice}`")


def _is_object(head: str) -> bool:
    try:
        return isinstance(_DECODER.raw_decode(head)[0], dict)
    except (ValueError, RecursionError):
        return False


def _read_line(document_id: int, origin: Origin, line: bytes, source: SourceConfig) -> SourceRecord:
    return _read_document(document_id, origin, line, source) or _read_carefully(document_id, origin, line, source)


def _read_document(document_id: int, origin: Origin, line: bytes, source: SourceConfig) -> Document | None:
    """The document of a line by orjson, twice as fast; None for any other line, of which Python's decoder knows what is wrong."""
    if line.count(b"[") + line.count(b"{") > _SAFE_BRACKETS:
        return None
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if type(content) is not dict:
        return None
    text = find_field(content, source.text)
    domain = source.domain_name if source.domain is None else find_field(content, source.domain)
    if type(text) is not str or type(domain) is not str:
        return None
    record = check_source_record(document_id, origin, text, domain, source.text, source.domain or "", "")
    return record if type(record) is Document else None


def _read_carefully(document_id: int, origin: Origin, line: bytes, source: SourceConfig) -> SourceRecord:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"the line is not valid UTF-8: {error.reason} at byte {error.start}"
        return Rejection(document_id, origin, "invalid_utf8", message, make_excerpt(line))
    try:
        content = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        message = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        if text.startswith("\ufeff"):
            message = (
                "it begins with a byte order mark, as where files were joined that each had one; take these off before joining"
            )
        return Rejection(document_id, origin, "malformed_json", f"not valid JSON: {message}", make_excerpt(text))
    if not isinstance(content, dict):
        message = f"the line holds a JSON {_JSON_KINDS[type(content)]}, not an object"
        return Rejection(document_id, origin, "not_an_object", message, make_excerpt(text))
    domain = source.domain_name if source.domain is None else find_field(content, source.domain)
    excerpt = make_excerpt(text)
    return check_source_record(
        document_id, origin, find_field(content, source.text), domain, source.text, source.domain or "", excerpt
    )


def find_field(content: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, or `MISSING`; a key that itself is the whole path comes first."""
    if path in content:
        return content[path]
    value: Any = content
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value


def _join_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The content cut after newlines, a block or more at a time; the parts of a line over many blocks are joined once, so its cost is linear."""
    parts: list[bytes] = []
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end:
            parts.append(block[:end])
            content, parts = b"".join(parts), [block[end:]]
            yield content
        else:
            parts.append(block)
    content, parts = b"".join(parts), []
    yield content


_JSON_KINDS = {list: "array", str: "string", float: "number", bool: "boolean", type(None): "null"}
