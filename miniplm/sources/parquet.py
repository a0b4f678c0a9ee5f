"""Parquet: one document a row; the text and the domain are columns, or fields inside struct columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miniplm.config.run import SourceConfig
from miniplm.errors import DamagedSourceError, list_offenders, reading_users_file
from miniplm.sources.blocks import BytesCallback, StoredFile, decoding
from miniplm.sources.compression import recognise_compression
from miniplm.sources.documents import MISSING, Origin, SourceRecords, check_source_record, make_excerpt
from miniplm.sources.files import SourceFile, open_raw
from miniplm.sources.parts import SourcePart, SourceParts, count_skipped
from miniplm.sources.signatures import HEAD_BYTES, is_plain_text, recognise_format

# Read together: of long documents few rows. A row group, which writers make of up to gigabytes, is never held whole.
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1000
_PROBLEM = "is damaged, truncated or no Parquet file"


def read_parquet_parts(
    file: SourceFile, source: SourceConfig, first_document_id: int, num_skipped: int, on_bytes: BytesCallback
) -> SourceParts:
    """The rows of a file after the first `num_skipped`, a few at a time; the first of all is document `first_document_id`.

    `on_bytes` is told the file's size bit by bit, by rows. Raises `DamagedSourceError` where the file is not
    Parquet, is truncated or damaged, or lacks a column.
    """
    fields = [source.text] + ([source.domain] if source.domain is not None else [])
    with open_raw(file) as opened:
        raw = StoredFile(opened, lambda num_bytes: None)
        _check_kind(file, raw.peek(HEAD_BYTES))
        with decoding(file, raw, _PROBLEM):
            # A column is what the file says, whatever `key=value` folders it lies in. Without a buffer ahead, which would hold a whole
            # row group; with checksums, where the file has them, since a flipped bit in plain text is else read as text.
            parquet = pq.ParquetFile(cast(Any, raw), pre_buffer=False, buffer_size=_BATCH_BYTES, page_checksum_verification=True)
        for field in fields:
            _check_column(file, parquet.schema_arrow, field)
        row = 0
        for group in range(parquet.num_row_groups):
            metadata = parquet.metadata.row_group(group)
            num_rows = metadata.num_rows
            group_bytes = file.num_bytes * num_rows / max(1, parquet.metadata.num_rows)
            if row + num_rows <= num_skipped:
                row += num_rows
                on_bytes(int(group_bytes))
                continue
            batch_rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES * num_rows // max(1, metadata.total_byte_size)))
            batches = parquet.iter_batches(batch_size=batch_rows, row_groups=[group], columns=fields)
            while True:
                with decoding(file, raw, _PROBLEM):
                    batch = next(batches, None)
                if batch is None:
                    break
                skipped = count_skipped(row, len(batch), num_skipped)
                if skipped < len(batch):
                    yield SourcePart(
                        file.path, source, first_document_id + row, row, len(batch), skipped, Rows(batch), batch.nbytes
                    )
                row += len(batch)
                on_bytes(int(group_bytes * len(batch) / num_rows))


def parse_parquet(part: SourcePart) -> SourceRecords:
    """The records of some rows. Raises `DamagedSourceError` where a column's values cannot be read."""
    source, batch = part.source, part.content.batch.slice(part.num_skipped)
    with reading_users_file(part.path, _PROBLEM, "copy it again", DamagedSourceError):
        texts = _read_column(batch, source.text)
        domains = [source.domain_name] * len(texts) if source.domain is None else _read_column(batch, source.domain)
    for index, (text, domain) in enumerate(zip(texts, domains, strict=True), start=part.num_skipped):
        excerpt = make_excerpt(text) if isinstance(text, str | bytes) else ""
        origin = Origin(part.path, "row", part.first_number + index)
        yield check_source_record(part.first_document_id + index, origin, text, domain, source.text, source.domain or "", excerpt)


class Rows:
    """Rows that go to another process alone, without the rows that lie beside them in memory."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch

    def __reduce__(self) -> tuple[Any, ...]:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.batch.schema) as writer:
            writer.write_batch(self.batch)
        return _open_rows, (sink.getvalue().to_pybytes(),)


def _open_rows(stored: bytes) -> Rows:
    return Rows(pa.ipc.open_stream(stored).read_next_batch())


def read_column_values(file: SourceFile, field: str) -> Iterator[Any]:
    """What a column, or a field inside struct columns, holds in each row; `MISSING` where the file has no such column."""
    with open_raw(file) as opened:
        raw = StoredFile(opened, lambda num_bytes: None)
        with decoding(file, raw, _PROBLEM):
            parquet = pq.ParquetFile(cast(Any, raw), pre_buffer=False, buffer_size=_BATCH_BYTES, page_checksum_verification=True)
        if _find_type(parquet.schema_arrow, field) is None:
            yield from repeat(MISSING, parquet.metadata.num_rows)
            return
        batches = parquet.iter_batches(batch_size=_BATCH_ROWS, columns=[field])
        while True:
            with decoding(file, raw, _PROBLEM):
                batch = next(batches, None)
                if batch is None:
                    break
                rows = batch.to_pylist()
            parts = [field] if batch.schema.get_field_index(field) >= 0 else field.split(".")
            for row in rows:
                value: Any = row
                for part in parts:
                    value = None if value is None else value[part]
                yield value


def list_columns(file: SourceFile) -> list[str]:
    """The columns of a file with their types, fields inside structs with dots."""
    with open_raw(file) as opened:
        raw = StoredFile(opened, lambda num_bytes: None)
        with decoding(file, raw, _PROBLEM):
            return _list_columns(pq.ParquetFile(cast(Any, raw), pre_buffer=False).schema_arrow)


def _check_kind(file: SourceFile, head: bytes) -> None:
    """Refuses by name what does not begin as Parquet does."""
    if head.startswith(b"PAR1"):
        return
    if not head:
        what = "it is empty"
    elif compression := recognise_compression(head):
        what = f"it holds {compression} data; Parquet is compressed inside: unpack it"
    elif found := recognise_format(head):
        what = f"it holds {found.name}"
    elif is_plain_text(head):
        is_json = head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{")
        what = "it holds JSON Lines; set `format: jsonl`" if is_json else "it holds text"
    else:
        what = f"it begins with {head[:8].hex(' ')}"
    raise DamagedSourceError(f"{file.path} {_PROBLEM}: {what}. Name Parquet files only, or copy it again")


def _check_column(file: SourceFile, schema: pa.Schema, field: str) -> None:
    """Raises `DamagedSourceError` where there is no such column, or none of text."""
    found = _find_type(schema, field)
    if found is None and (num_columns := schema.names.count(field.split(".")[0])) > 1:
        raise DamagedSourceError(
            f"{file.path} has {num_columns} columns {field.split('.')[0]!r}, only one of which can be meant; rename one"
        )
    if found is None:
        names = list_offenders(_list_columns(schema), most=50)
        raise DamagedSourceError(f"{file.path} has no column {field!r}; it has {names}. Name one of them in the source")
    if pa.types.is_dictionary(found):
        found = found.value_type
    is_text = any(
        check(found)
        for check in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
            pa.types.is_null,  # as writers type a column in which nothing was set: each row is a rejection, counted
        )
    )
    if not is_text:
        raise DamagedSourceError(
            f"{file.path}: the column {field!r} holds {found}, not strings; its columns are "
            f"{list_offenders(_list_columns(schema), most=50)}. Name one that holds strings in the source"
        )


def _find_type(schema: pa.Schema, field: str) -> Any:
    """The type of a column or of a field inside struct columns, None where there is none (or more than one)."""
    if schema.get_field_index(field) >= 0:
        return schema.field(field).type
    first, *rest = field.split(".")
    if schema.get_field_index(first) < 0:
        return None
    found = schema.field(first).type
    for part in rest:
        if not pa.types.is_struct(found) or found.get_field_index(part) < 0:
            return None
        found = found.field(found.get_field_index(part)).type
    return found


def _list_columns(schema: pa.Schema) -> list[str]:
    """Columns and fields of structs as a source can name them, with their types."""
    names: list[str] = []

    def add(prefix: str, field: pa.Field) -> None:
        if pa.types.is_struct(field.type):
            for index in range(field.type.num_fields):
                add(f"{prefix}{field.name}.", field.type.field(index))
        else:
            names.append(f"{prefix}{field.name} ({field.type})")

    for field in schema:
        add("", field)
    return names


def _read_column(batch: pa.RecordBatch, field: str) -> list[Any]:
    """The values of a column as bytes or None; as `MISSING` where a struct around it is null."""
    if batch.schema.get_field_index(field) >= 0:
        return _to_bytes(batch.column(field))
    first, *rest = field.split(".")
    array = batch.column(first)
    missing = array.is_null()
    for index, part in enumerate(rest):
        array = cast(pa.StructArray, array).flatten()[array.type.get_field_index(part)]
        if index < len(rest) - 1:
            missing = pc.or_(missing, array.is_null())
    return [MISSING if gone else value for value, gone in zip(_to_bytes(array), missing.to_pylist(), strict=True)]


def _to_bytes(array: pa.Array) -> list[Any]:
    """A column of strings or bytes as bytes, so that invalid UTF-8 in one row is that row's fault alone."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return list(array.cast(pa.large_binary()).to_pylist())
