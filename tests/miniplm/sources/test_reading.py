"""Sources: globs, compressions, the three formats, each rejection and each fault of a file."""

from __future__ import annotations

import gzip
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from miniplm.errors import SourceError
from miniplm.sources.blocks import read_blocks
from miniplm.sources.documents import MISSING, Document, Rejection
from miniplm.sources.files import find_source_files
from miniplm.sources.jsonl import _join_lines, find_field
from tests.miniplm.source_fixtures import COMPRESS, make_source, read_lines, read_source

# Globs


def find_names(path: object, **settings: Any) -> list[str]:
    return [file.path for file in find_source_files(make_source(path, **settings))]


def test_a_glob_gives_its_files_sorted_by_path(tmp_path: Path):
    for name in ("b/2.jsonl", "a/1.jsonl", "a/10.jsonl", "a/deep/er/3.jsonl", "a/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    names = lambda pattern: [name[len(str(tmp_path)) + 1 :] for name in find_names(tmp_path / pattern)]  # noqa: E731
    assert names("*/*.jsonl") == ["a/1.jsonl", "a/10.jsonl", "b/2.jsonl"]
    assert names("**/*.jsonl") == ["a/1.jsonl", "a/10.jsonl", "a/deep/er/3.jsonl", "b/2.jsonl"]
    assert names("a/?.jsonl") == ["a/1.jsonl"]
    assert names("[ab]/[12].jsonl") == ["a/1.jsonl", "b/2.jsonl"]
    assert names("a/1.jsonl") == ["a/1.jsonl"]


def test_relative_paths_file_urls_and_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_text("{}")
    (tmp_path / "data/link.jsonl").symlink_to(tmp_path / "data/a.jsonl")
    monkeypatch.chdir(tmp_path)
    both = [str(tmp_path / "data/a.jsonl"), str(tmp_path / "data/link.jsonl")]
    assert find_names("data/*.jsonl") == both
    assert find_names(f"file://{tmp_path}/data/*.jsonl") == both
    assert find_names("data", format="text") == both
    (tmp_path / "data/gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"gone\.jsonl is a link to a file that does not exist"):
        find_names("data/*.jsonl")


def test_a_name_that_looks_like_a_pattern_is_that_file(tmp_path: Path):
    (tmp_path / "a[1].jsonl").write_text("{}")
    assert find_names(tmp_path / "a[1].jsonl") == [str(tmp_path / "a[1].jsonl")]


def test_a_folder_of_text_files_is_read_whole_but_for_hidden_ones(tmp_path: Path):
    for name in ("a.txt", "sub/b.md", ".git/config", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    assert find_names(tmp_path, format="text") == [str(tmp_path / "a.txt"), str(tmp_path / "sub/b.md")]
    assert find_names(f"{tmp_path}/", format="text") == [str(tmp_path / "a.txt"), str(tmp_path / "sub/b.md")]


def test_memory_urls_are_globbed(tmp_path: Path):
    fsspec.filesystem("memory").pipe_file("/sources-test/a.jsonl", b'{"text": "one"}\n')
    assert find_names("memory://sources-test/*.jsonl") == ["memory:///sources-test/a.jsonl"]
    (document,) = read_source(make_source("memory://sources-test/*.jsonl"))
    assert isinstance(document, Document)
    assert document.text == "one"


def test_a_glob_that_matches_nothing_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"data/\*\.jsonl matches no file .*current folder is .*holds a\.json"):
        find_names("data/*.jsonl")
    with pytest.raises(SourceError, match=r"missing/\*\.jsonl matches no file .*missing does not exist"):
        find_names("missing/*.jsonl")
    with pytest.raises(SourceError, match="matches no file"):
        find_names("memory://nowhere/*.jsonl")


@pytest.mark.parametrize("data_format", ["jsonl", "parquet"])
def test_a_folder_that_is_no_text_source_is_refused(tmp_path: Path, data_format: str):
    with pytest.raises(SourceError, match=rf"is a folder; name its files, e\.g\. path: {tmp_path}/\*\.{data_format}"):
        find_names(tmp_path, format=data_format)


# Compression


@pytest.mark.parametrize("ending", COMPRESS)
def test_every_compression_gives_the_content_and_counts_the_stored_bytes(tmp_path: Path, ending: str):
    content = os.urandom(300_000) + b"a" * 3_000_000
    # Two members one after the other, as `cat` makes of two files.
    stored = COMPRESS[ending](content) + COMPRESS[ending](b"the end")
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(stored)
    (file,) = find_source_files(make_source(path))
    counted: list[int] = []
    assert b"".join(read_blocks(file, counted.append)) == content + b"the end"
    assert sum(counted) == len(stored)


def test_what_archivers_put_around_the_data_is_passed_over(tmp_path: Path):
    skippable = (0x184D2A50).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"any."
    compress = zstandard.ZstdCompressor().compress
    stored = {
        "frames.zst": skippable + compress(b"one") + skippable + compress(b"two") + skippable,
        "padded.gz": gzip.compress(b"one") + gzip.compress(b"two") + bytes(512),
    }
    for name, content in stored.items():
        (tmp_path / name).write_bytes(content)
        (file,) = find_source_files(make_source(tmp_path / name))
        assert b"".join(read_blocks(file, lambda num_bytes: None)) == b"onetwo"


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("kept", [0, 1, 10, 0.5, -1])
def test_a_truncated_file_is_an_error_not_a_shorter_one(tmp_path: Path, ending: str, kept: float):
    stored = COMPRESS[ending](os.urandom(200_000))
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(stored[: int(len(stored) * kept)] if kept == 0.5 else stored[: int(kept)])
    (file,) = find_source_files(make_source(path))
    with pytest.raises(SourceError, match=rf"x\.jsonl\{ending} is (truncated|empty|damaged).*copy it again"):
        list(read_blocks(file, lambda num_bytes: None))


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2"])
def test_a_file_with_a_flipped_byte_or_of_another_kind_is_an_error(tmp_path: Path, ending: str):
    path = tmp_path / f"x.jsonl{ending}"
    compress = zstandard.ZstdCompressor(write_checksum=True).compress if ending == ".zst" else COMPRESS[ending]
    stored = bytearray(compress(b"".join(b"%d" % i for i in range(100_000))))
    stored[len(stored) // 2] ^= 0xFF
    for content in (bytes(stored), b'{"text": "caf\xe9, not compressed, and not UTF-8"}\n', b"\x00\x01\x02"):
        path.write_bytes(content)
        (file,) = find_source_files(make_source(path))
        with pytest.raises(SourceError, match=rf"x\.jsonl\{ending} is (damaged|truncated)"):
            list(read_blocks(file, lambda num_bytes: None))


def test_an_unknown_ending_is_read_as_it_is(tmp_path: Path):
    (tmp_path / "x.data").write_bytes(b'{"text": "plain"}')
    (document,) = read_source(make_source(tmp_path / "x.data"))
    assert isinstance(document, Document)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_lines_do_not_depend_on_where_blocks_end(content: bytes, cuts: list[int]):
    bounds = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    blocks = [content[start:stop] for start, stop in pairwise(bounds)]
    joined = list(_join_lines(iter(blocks)))
    assert b"".join(joined) == content
    assert all(part.endswith(b"\n") for part in joined[:-1])


# JSON Lines


def test_documents_know_their_line_domain_and_bytes(tmp_path: Path):
    found = read_lines(
        tmp_path,
        b'\xef\xbb\xbf{"text": "one", "meta": {"set": "A"}}\r',
        b"",
        b"  \t ",
        '{"text": "zwölf", "meta": {"set": "B"}}'.encode(),
        domain="meta.set",
        domain_name=None,
    )
    assert [(item.document_id, item.origin.number, item.domain, item.text, item.num_bytes) for item in found] == [
        (100, 1, "A", "one", 3),
        (101, 4, "B", "zwölf", 6),
    ]


REJECTED_LINES = [
    (b'{"text": "cut off', "malformed_json"),
    (b"not json", "malformed_json"),
    (b'{"text": "a"} {"text": "b"}', "malformed_json"),
    (b'{"text": "a", }', "malformed_json"),
    (b'{"text": "raw \x01 control"}', "malformed_json"),
    (b"[" * 100_000, "malformed_json"),
    (b'["text"]', "not_an_object"),
    (b'"text"', "not_an_object"),
    (b"17", "not_an_object"),
    (b"null", "not_an_object"),
    (b"true", "not_an_object"),
    (b"NaN", "not_an_object"),
    (b"{}", "missing_text"),
    (b'{"Text": "other case"}', "missing_text"),
    (b'{"text": null}', "null_text"),
    (b'{"text": 5}', "text_not_a_string"),
    (b'{"text": ["a"]}', "text_not_a_string"),
    (b'{"text": {"a": "b"}}', "text_not_a_string"),
    (b'{"text": true}', "text_not_a_string"),
    (b'{"text": NaN}', "text_not_a_string"),
    (b'{"text": "\xff\xfe"}', "invalid_utf8"),
    (b'{"text": "caf\xe9"}', "invalid_utf8"),
    (b'{"text": "lone \\ud800 surrogate"}', "invalid_utf8"),
    (b'{"text": ""}', "empty_document"),
    (b'{"text": " \\n\\t\\u00a0"}', "empty_document"),
    (b'{"text": "x", "domain": null}', "missing_domain"),
    (b'{"text": "x"}', "missing_domain"),
    (b'{"text": "x", "domain": " "}', "missing_domain"),
    (b'{"text": "x", "domain": 3}', "domain_not_a_string"),
    (b'{"text": "x", "domain": {}}', "domain_not_a_string"),
    (b'{"text": "x", "domain": "\\udfff"}', "invalid_utf8"),
]


@pytest.mark.parametrize(("line", "reason"), REJECTED_LINES)
def test_each_fault_of_a_line_has_its_reason_and_harms_no_other_line(tmp_path: Path, line: bytes, reason: str):
    good = b'{"text": "good", "domain": "d"}'
    first, rejected, last = read_lines(tmp_path, good, line, good, domain="domain", domain_name=None)
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert last.document_id == 102
    assert isinstance(rejected, Rejection)
    assert (rejected.reason, rejected.document_id, rejected.origin.number) == (reason, 101, 2)
    row = json.loads(json.dumps(rejected.as_json(), ensure_ascii=False).encode("utf-8"))
    assert row["line"] == 2
    assert row["source"].endswith("in.jsonl")
    assert row["message"]
    assert len(row["excerpt"]) <= 500


def test_a_byte_order_mark_between_joined_files_is_told(tmp_path: Path):
    """The first of a file is none of its text; within a file the record is rejected, as it always was, and said why."""
    line = b'\xef\xbb\xbf{"text": "good"}'
    first, second = read_lines(tmp_path, line, line)
    assert isinstance(first, Document)
    assert isinstance(second, Rejection)
    assert second.reason == "malformed_json"
    assert "begins with a byte order mark, as where files were joined" in second.message


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "first", "text": "good"}',
        b'{"text": "good", "score": NaN, "other": -Infinity}',
        b'{"text": "good", "id": ' + b"9" * 10_000 + b"}",
        b'{"text": "go\\u006fd"}',
    ],
)
def test_what_is_odd_elsewhere_in_a_record_does_no_harm(tmp_path: Path, line: bytes):
    (document,) = read_lines(tmp_path, line)
    assert isinstance(document, Document)
    assert document.text == "good"


def test_fields_are_found_by_dotted_path_or_by_a_key_with_dots():
    content = {"a": {"b": {"c": 1}}, "x.y": 2, "a.b": 3, "n": None}
    assert find_field(content, "a.b.c") == 1
    assert find_field(content, "x.y") == 2
    assert find_field(content, "a.b") == 3
    assert find_field(content, "n") is None
    assert find_field(content, "n.m") is MISSING
    assert find_field(content, "a.b.c.d") is MISSING


def test_reading_can_start_after_some_records(tmp_path: Path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"text": "{i}"}}\n\n' for i in range(10)) + "broken\n")
    whole = read_source(make_source(path))
    assert len(whole) == 11
    for num_skipped in range(12):
        assert read_source(make_source(path), num_skipped) == whole[num_skipped:]


_ARRAY = [{"text": f"number {index}"} for index in range(3)]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (json.dumps(_ARRAY), "a JSON array, .*jq -c '.*'"),
        (json.dumps(_ARRAY, indent=1), "a JSON array"),
        ("\ufeff[\n" + ",\n".join(map(json.dumps, _ARRAY)) + "\n]\n", "a JSON array"),
        (json.dumps(_ARRAY * 5000), "a JSON array"),
        ("\r".join(map(json.dumps, _ARRAY)), "several JSON objects in one line"),
        ("".join(map(json.dumps, _ARRAY * 5000)), "several JSON objects in one line"),
        (", ".join(map(json.dumps, _ARRAY)) + "\n", "several JSON objects in one line"),
        ("\n".join(json.dumps(row, indent=2) for row in _ARRAY), "a JSON object over several lines"),
        (json.dumps({"text": "long " * 20_000}, indent=2), "a JSON object over several lines"),
        ('{"text": "one",\n"domain": "web"}\n', "a JSON object over several lines"),
        ("".join(f"\x1e{json.dumps(row)}\n" for row in _ARRAY), r"a JSON text sequence \(RFC 7464\)"),
    ],
)
def test_documents_that_are_not_one_a_line_are_refused(tmp_path: Path, content: str, found: str):
    (tmp_path / "in.jsonl").write_text(content, newline="")
    with pytest.raises(SourceError, match=rf"in\.jsonl holds {found}"):
        read_source(make_source(tmp_path / "in.jsonl"))


@pytest.mark.parametrize(
    "line", ['[{"text": "a row"}]', '{"text": "a"}{"text": "b"}', "[INFO] started", '["text"]', '{"text": "cut', '{"a":', "{"]
)
def test_one_line_of_another_kind_among_others_is_one_rejection(tmp_path: Path, line: str):
    first, last = read_lines(tmp_path, line.encode(), b'{"text": "one"}')
    assert isinstance(first, Rejection)
    assert isinstance(last, Document)


def test_an_empty_file_has_no_records(tmp_path: Path):
    assert read_lines(tmp_path, b"") == []
    assert read_lines(tmp_path, b"\n\n \n") == []


# Text files


def test_a_text_file_is_one_document(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfline one\nline two\r\n")
    (document,) = read_source(make_source(path, format="text"))
    assert isinstance(document, Document)
    assert (document.text, document.domain, document.num_bytes) == ("line one\nline two\r\n", "d", 19)
    assert read_source(make_source(path, format="text"), num_skipped=1) == []


@pytest.mark.parametrize(
    ("content", "reason"), [(b"\xff\xfea\x00", "invalid_utf8"), (b"", "empty_document"), (b" \n", "empty_document")]
)
def test_a_text_file_without_text_is_rejected(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    (rejection,) = read_source(make_source(path, format="text"))
    assert isinstance(rejection, Rejection)
    assert rejection.reason == reason
