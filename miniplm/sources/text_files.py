"""Text files: one document a file."""

from __future__ import annotations

import codecs

from miniplm.config import SourceConfig
from miniplm.sources.files import BytesCallback, SourceFile, read_blocks
from miniplm.sources.records import Origin, Records, Rejection, check_record, make_excerpt


def read_text_file(
    file: SourceFile, source: SourceConfig, first_document_id: int, num_skipped: int, on_bytes: BytesCallback
) -> Records:
    """The one record of a file; a byte order mark is dropped."""
    if num_skipped:
        return
    content = b"".join(read_blocks(file, on_bytes)).removeprefix(codecs.BOM_UTF8)
    origin = Origin(file.path, "file", 1)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"the file is not valid UTF-8: {error.reason} at byte {error.start}"
        yield Rejection(first_document_id, origin, "invalid_utf8", message, make_excerpt(content))
        return
    yield check_record(first_document_id, origin, text, source.domain_name, "(the whole file)", "", make_excerpt(text))
