"""Reads the records of a source file, whatever its format. A new format is a reader and a line here."""

from __future__ import annotations

from miniplm.config.run import SourceConfig
from miniplm.sources.blocks import BytesCallback
from miniplm.sources.documents import SourceRecords
from miniplm.sources.files import SourceFile
from miniplm.sources.jsonl import read_jsonl
from miniplm.sources.parquet import read_parquet
from miniplm.sources.text_files import read_text_file

READERS = {"jsonl": read_jsonl, "parquet": read_parquet, "text": read_text_file}


def read_source_records(
    file: SourceFile, source: SourceConfig, first_document_id: int, num_skipped: int, on_bytes: BytesCallback
) -> SourceRecords:
    """The records of a file after the first `num_skipped`; the first of all is document `first_document_id`.

    `on_bytes` is told of each stored byte that was read. Raises `DamagedSourceError` where the file is damaged.
    """
    return READERS[source.format](file, source, first_document_id, num_skipped, on_bytes)
