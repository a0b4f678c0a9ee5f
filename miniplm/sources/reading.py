"""Reads the records of a source file, whatever its format. A new format is a reader, a parser, and a line here."""

from __future__ import annotations

from miniplm.config.run import SourceConfig
from miniplm.sources.blocks import BytesCallback
from miniplm.sources.documents import SourceRecords
from miniplm.sources.files import SourceFile
from miniplm.sources.jsonl import parse_jsonl, read_jsonl_parts
from miniplm.sources.parquet import parse_parquet, read_parquet_parts
from miniplm.sources.parts import SourcePart, SourceParts
from miniplm.sources.text_files import parse_text_file, read_text_parts

READERS = {"jsonl": read_jsonl_parts, "parquet": read_parquet_parts, "text": read_text_parts}
PARSERS = {"jsonl": parse_jsonl, "parquet": parse_parquet, "text": parse_text_file}


def read_source_parts(
    file: SourceFile, source: SourceConfig, first_document_id: int, num_skipped: int, on_bytes: BytesCallback
) -> SourceParts:
    """The records of a file after the first `num_skipped`, some at a time and not parsed; the first of all is document `first_document_id`.

    `on_bytes` is told of each stored byte that was read. Raises `DamagedSourceError` where the file is damaged.
    """
    return READERS[source.format](file, source, first_document_id, num_skipped, on_bytes)


def parse_part(part: SourcePart) -> SourceRecords:
    """The records of a part that are asked for, in order, each a document or a rejection."""
    return PARSERS[part.source.format](part)


def read_source_records(
    file: SourceFile, source: SourceConfig, first_document_id: int, num_skipped: int, on_bytes: BytesCallback
) -> SourceRecords:
    """The records of the parts that `read_source_parts` gives; raises what that raises."""
    for part in read_source_parts(file, source, first_document_id, num_skipped, on_bytes):
        yield from parse_part(part)
