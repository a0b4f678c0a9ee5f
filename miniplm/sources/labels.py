"""The label of each record of a source file: any field beside its text, for people who know what a document is. No part of the pipeline reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from miniplm.config.fields import write_label
from miniplm.config.run import SourceConfig
from miniplm.errors import ConfigError
from miniplm.sources.documents import MISSING
from miniplm.sources.files import SourceFile
from miniplm.sources.jsonl import list_json_fields, read_json_values
from miniplm.sources.parquet import list_columns, read_column_values

# What is longer is no name of a kind but a text, of which a table or a message could not show one.
_LONGEST = 200


def read_labels(file: SourceFile, source: SourceConfig, field: str) -> Iterator[str | None]:
    """One label a record, in the order of the file and as many as `read_source_records` gives; None where the field is missing, null, NaN or empty.

    Numbers and truth values are labels as they are written. Raises `ConfigError` for a field that holds lists, objects or long texts, and
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
    if isinstance(value, float) and math.isnan(value):  # so pandas writes that there is no value
        return None
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else write_label(value)
    label = text.encode("utf-8", "backslashreplace").decode().strip()
    if len(label) > _LONGEST:
        raise ConfigError(
            f"corpus.truth: the field {field!r} holds a text of {len(label):,} characters in {place}; a label has at most {_LONGEST}. Name a "
            "field that says in a word or two what kind of text a document is"
        )
    return label or None
