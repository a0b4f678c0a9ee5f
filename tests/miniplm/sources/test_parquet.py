"""Sources: globs, compressions, the three formats, each rejection and each fault of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniplm.errors import SourceError
from miniplm.sources.documents import Document, Rejection
from tests.miniplm.source_fixtures import make_source, read_source


def write_parquet(path: Path, columns: dict[str, Any], **settings: Any) -> Path:
    pq.write_table(pa.table(columns), path, **settings)
    return path


@pytest.mark.parametrize(
    "text_type",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary(), pa.large_binary()],
)
def test_every_kind_of_string_column_is_read(tmp_path: Path, text_type: pa.DataType):
    values = ["eins", None, "zwölf", "", "eins"]
    encoded = [None if value is None else value.encode() for value in values] if "binary" in str(text_type) else values
    path = write_parquet(tmp_path / "x.parquet", {"text": pa.array(encoded, text_type), "d": pa.array(list("abcde"))})
    found = read_source(make_source(path, format="parquet", domain="d", domain_name=None))
    assert [item.text if isinstance(item, Document) else item.reason for item in found] == [
        "eins",
        "null_text",
        "zwölf",
        "empty_document",
        "eins",
    ]
    assert [item.origin.number for item in found] == [0, 1, 2, 3, 4]
    assert [item.document_id for item in found] == [100, 101, 102, 103, 104]
    assert isinstance(found[2], Document)
    assert (found[2].domain, found[2].num_bytes) == ("c", 6)
    assert isinstance(found[1], Rejection)
    assert found[1].as_json()["row"] == 1


def test_fields_inside_struct_columns_are_read(tmp_path: Path):
    rows = [
        {"body": {"text": "one"}, "set": {"name": {"long": "A"}}},
        {"body": None, "set": {"name": {"long": "A"}}},
        {"body": {"text": None}, "set": {"name": {"long": "A"}}},
        {"body": {"text": "two"}, "set": {"name": None}},
        {"body": {"text": "two"}, "set": {"name": {"long": None}}},
    ]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = read_source(make_source(path, format="parquet", text="body.text", domain="set.name.long", domain_name=None))
    assert [item.domain if isinstance(item, Document) else item.reason for item in found] == [
        "A",
        "missing_text",
        "null_text",
        "missing_domain",
        "missing_domain",
    ]


def test_a_column_whose_name_holds_dots_is_read(tmp_path: Path):
    path = write_parquet(tmp_path / "x.parquet", {"meta.text": ["one"], "other": ["two"]})
    (document,) = read_source(make_source(path, format="parquet", text="meta.text"))
    assert isinstance(document, Document)
    assert document.text == "one"


def test_invalid_utf8_in_one_row_is_that_rows_fault(tmp_path: Path):
    texts = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    path = write_parquet(tmp_path / "x.parquet", {"text": texts})
    found = read_source(make_source(path, format="parquet"))
    assert [item.text if isinstance(item, Document) else item.reason for item in found] == ["good", "invalid_utf8", "fine"]


def test_parquet_can_be_read_from_any_row_over_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("miniplm.sources.parquet._BATCH_ROWS", 3)
    path = write_parquet(tmp_path / "x.parquet", {"text": [f"row {i}" for i in range(25)]}, row_group_size=10)
    source = make_source(path, format="parquet")
    whole = read_source(source)
    assert [item.text for item in whole if isinstance(item, Document)] == [f"row {i}" for i in range(25)]
    for num_skipped in range(26):
        assert read_source(source, num_skipped) == whole[num_skipped:]


def test_a_missing_column_is_an_error_that_names_those_there_are(tmp_path: Path):
    path = write_parquet(tmp_path / "x.parquet", {"content": ["a"], "meta": [{"lang": "en"}]})
    for settings in ({}, {"text": "meta.text"}, {"text": "content", "domain": "set", "domain_name": None}):
        with pytest.raises(SourceError, match=r"x\.parquet has no column .*content \(string\), meta\.lang \(string\)"):
            read_source(make_source(path, format="parquet", **settings))


def test_a_column_that_holds_no_strings_is_an_error(tmp_path: Path):
    path = write_parquet(tmp_path / "x.parquet", {"text": [1, 2]})
    with pytest.raises(SourceError, match="the column 'text' holds int64, not strings"):
        read_source(make_source(path, format="parquet"))


def test_a_file_that_is_no_parquet_or_is_cut_off_is_an_error(tmp_path: Path):
    whole = write_parquet(tmp_path / "x.parquet", {"text": ["some text"] * 1000}).read_bytes()
    damaged = bytearray(whole)
    damaged[4 : len(damaged) // 3] = bytes(len(damaged) // 3 - 4)
    for content in (b"", b"PAR1", b'{"text": "a"}\n' * 100, whole[: len(whole) // 2], bytes(damaged)):
        (tmp_path / "x.parquet").write_bytes(content)
        with pytest.raises(SourceError, match=r"x\.parquet is damaged, truncated or no Parquet file"):
            read_source(make_source(tmp_path / "x.parquet", format="parquet"))


def test_a_page_that_is_not_what_its_checksum_says_is_an_error(tmp_path: Path):
    path = write_parquet(
        tmp_path / "x.parquet",
        {"text": ["one text"]},
        write_page_checksum=True,
        write_statistics=False,
        use_dictionary=False,
        compression="none",
    )
    path.write_bytes(path.read_bytes().replace(b"one text", b"one next", 1))
    with pytest.raises(SourceError, match=r"x\.parquet is damaged.*CRC"):
        read_source(make_source(path, format="parquet"))


def test_columns_of_one_name_are_told_apart_by_nobody(tmp_path: Path):
    column = pa.array(["one"])
    pq.write_table(pa.Table.from_arrays([column, column], names=["text", "text"]), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"x\.parquet has 2 columns 'text'.*rename one"):
        read_source(make_source(tmp_path / "x.parquet", format="parquet"))
