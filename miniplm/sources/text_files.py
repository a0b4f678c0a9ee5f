"""Text files: one document a file."""

from __future__ import annotations

import codecs

from miniplm.config.run import SourceConfig
from miniplm.sources.blocks import BytesCallback, read_blocks
from miniplm.sources.documents import Origin, Rejection, SourceRecords, check_source_record, make_excerpt
from miniplm.sources.files import SourceFile
from miniplm.sources.parts import SourcePart, SourceParts
from miniplm.sources.signatures import HEAD_BYTES, recognise_format


def read_text_parts(
    file: SourceFile, source: SourceConfig, first_document_id: int, num_skipped: int, on_bytes: BytesCallback
) -> SourceParts:
    """The whole file, as it is one document: the memory of a text source is its largest file.

    Raises `DamagedSourceError` for an archive, in which many documents would be lost.
    """
    if not num_skipped:
        content = b"".join(read_blocks(file, on_bytes))
        yield SourcePart(file.path, source, first_document_id, 1, 1, 0, content, len(content))


def parse_text_file(part: SourcePart) -> SourceRecords:
    """The one record of a file; a byte order mark is dropped.

    An image or a document of a word processor among text files is one rejection, named by its kind.
    """
    document_id, content = part.first_document_id, part.content.removeprefix(codecs.BOM_UTF8)
    origin = Origin(part.path, "file", 1)
    found = recognise_format(content[:HEAD_BYTES])
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        kind = f"the file holds {found.name}" if found else "the file is not valid UTF-8"
        message = f"{kind}: {error.reason} at byte {error.start}"
        yield Rejection(document_id, origin, "invalid_utf8", message, make_excerpt(content))
        return
    if found is not None:
        yield Rejection(document_id, origin, "not_text", f"the file holds {found.name}", make_excerpt(content))
        return
    yield check_source_record(document_id, origin, text, part.source.domain_name, "(the whole file)", "", make_excerpt(text))
