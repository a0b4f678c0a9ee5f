"""The label of each record of a source file: any field beside its text, for people who know what a document is. No part of the pipeline reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from miniplm.config.run import SourceConfig
from miniplm.errors import ConfigError
from miniplm.sources.documents import MISSING
from miniplm.sources.files import SourceFile
from miniplm.sources.jsonl import list_json_fields, read_json_values
from miniplm.sources.parquet import list_columns, read_column_values


def read_labels(file: SourceFile, source: SourceConfig, field: str) -> Iterator[str | None]:
    """One label a record, in the order of the file and as many as `read_source_records` gives; None where the field is missing, null or empty.

    Numbers and truth values are labels as they are written. Raises `ConfigError` for a field that holds lists or objects, and
    `DamagedSourceError` as the reading of documents does.
    """
    for index, value in enumerate(_read_values(file, source, field)):
        yield _describe(value, field, f"{file.path}, record {index + 1}")


def list_fields(file: SourceFile, source: SourceConfig) -> list[str]:
    """The fields that the first record of a file has, with dots; none of text files."""
    if source.format == "jsonl":
        return list_json_fields(file)
    return list_columns(file) if source.format == "parquet" else []


def _read_values(file: SourceFile, source: SourceConfig, field: str) -> Iterator[Any]:
    if source.format == "jsonl":
        return read_json_values(file, field)
    return read_column_values(file, field) if source.format == "parquet" else iter([MISSING])


def _describe(value: Any, field: str, place: str) -> str | None:
    if value is MISSING or value is None:
        return None
    if isinstance(value, dict | list | tuple):
        kind = "an object" if isinstance(value, dict) else "a list"
        raise ConfigError(
            f"corpus.truth: the field {field!r} holds {kind} in {place}; a label is a text, a number or true and false. Name a field that "
            "holds one, with dots for what lies inside objects"
        )
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # JSON's integers are read as floats
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.encode("utf-8", "backslashreplace").decode().strip() or None
