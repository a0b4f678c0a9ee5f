"""Which files a pattern takes: hidden ones, links, loops, odd names; and that what it leaves out is told with its reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import pytest

from miniplm.errors import SourceError, StorageError
from miniplm.sources.files import find_source, find_source_files
from tests.miniplm.source_fixtures import make_source


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def find(root: Path, pattern: str, **settings: Any) -> tuple[list[str], dict[str, list[str]]]:
    """Names below `root` that are taken, and those left out by reason."""
    found = find_source(make_source(f"{root}/{pattern}", **settings))
    cut = len(str(root)) + 1
    return [file.path[cut:] for file in found.files], {
        entry.reason: [name[cut:] for name in entry.names] for entry in found.left_out
    }


HIDDEN = ("._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", ".a.jsonl.partial.jsonl", "sub/.git/deep/x.jsonl", "sub/.b.jsonl")


def test_wildcards_stand_for_no_dot_at_the_start_of_a_name_and_what_they_leave_out_is_told(tmp_path: Path):
    make_files(tmp_path, "a.jsonl", "sub/b.jsonl", "sub/_c.jsonl", "x.txt", ".hidden.txt", *HIDDEN)
    assert find(tmp_path, "**/*.jsonl") == (["a.jsonl", "sub/_c.jsonl", "sub/b.jsonl"], {"hidden": sorted(HIDDEN)})
    assert find(tmp_path, "*.jsonl") == (["a.jsonl"], {"hidden": ["._a.jsonl", ".a.jsonl.partial.jsonl"]})
    assert find(tmp_path, "*/[!x]*.jsonl")[0] == ["sub/_c.jsonl", "sub/b.jsonl"]
    taken, left = find(tmp_path, "", format="text")
    assert taken == ["a.jsonl", "sub/_c.jsonl", "sub/b.jsonl", "x.txt"]
    assert left == {"hidden": sorted([*HIDDEN, ".hidden.txt"])}


def test_a_hidden_name_that_the_pattern_spells_out_is_taken(tmp_path: Path):
    make_files(tmp_path, ".cache/set/a.jsonl", ".cache/set/.b.jsonl", ".cache/.c/d.jsonl", "e.jsonl")
    assert find(tmp_path, ".cache/set/*.jsonl") == ([".cache/set/a.jsonl"], {"hidden": [".cache/set/.b.jsonl"]})
    assert find(tmp_path, ".cache/set/.*.jsonl") == ([".cache/set/.b.jsonl"], {})
    assert find(tmp_path, ".c*/*/*.jsonl")[0] == [".cache/set/a.jsonl"]
    assert find(tmp_path, ".cache/set/.b.jsonl") == ([".cache/set/.b.jsonl"], {})
    with pytest.raises(SourceError, match=r"matches no file .*left out, hidden: .*\.cache/set/\.b\.jsonl"):
        find(tmp_path, ".cache/set/?b.jsonl")


def test_stores_are_listed_by_the_same_rules():
    memory = fsspec.filesystem("memory")
    for name in ("a.jsonl", "sub/b.jsonl", *HIDDEN):
        memory.pipe_file(f"/listed/data/{name}", b"{}")
    found = find_source(make_source("memory://listed/data/**/*.jsonl"))
    assert [file.path for file in found.files] == ["memory:///listed/data/a.jsonl", "memory:///listed/data/sub/b.jsonl"]
    (left,) = found.left_out
    assert (left.reason, left.num_files) == ("hidden", 5)
    assert left.names[0] == "memory:///listed/data/._a.jsonl"
    memory.pipe_file("/listed[1]/a.jsonl", b"{}")
    assert len(find_source_files(make_source("memory://listed[1]/*.jsonl"))) == 1


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a web server with the files of `tmp_path`, which says of `unsized` ones no length."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            if "unsized" in self.path:
                self.send_response(200)
                self.end_headers()
            else:
                super().do_HEAD()

        def do_GET(self) -> None:
            if "unsized" in self.path:
                self.do_HEAD()
            else:
                super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_files_of_a_web_server_are_found_by_address_question_and_listing(tmp_path: Path, web: str):
    make_files(tmp_path, "a.jsonl", "b.jsonl")
    for name in ("a.jsonl", "a.jsonl?download=true"):
        (file,) = find_source_files(make_source(f"{web}/{name}"))
        assert (file.path, file.num_bytes) == (f"{web}/{name}", 2)
    assert [file.num_bytes for file in find_source_files(make_source(f"{web}/*.jsonl"))] == [2, 2]
    with pytest.raises(SourceError, match="does not say how long it is"):
        find_source(make_source(f"{web}/unsized.jsonl"))


@pytest.mark.parametrize("url", ["nosuch://bucket/*.jsonl", "s4://bucket/a.jsonl"])
def test_a_store_that_nobody_knows_is_refused(url: str):
    with pytest.raises(StorageError, match=r"is in no store that this machine can open .*Protocol not known"):
        find_source(make_source(url))


def test_folders_behind_links_are_listed_once_and_loops_end(tmp_path: Path):
    make_files(tmp_path, "elsewhere/deep/b.jsonl", "data/a.jsonl", "data/sub/c.jsonl")
    (tmp_path / "data/linked").symlink_to("../elsewhere")
    (tmp_path / "data/again").symlink_to(tmp_path / "elsewhere/deep")
    (tmp_path / "data/sub/up").symlink_to("..")
    (tmp_path / "data/other").symlink_to("sub")
    taken, left = find(tmp_path, "data/**/*.jsonl")
    assert taken == ["data/a.jsonl", "data/again/b.jsonl", "data/sub/c.jsonl"]
    assert left["found already"] == ["data/linked/deep/b.jsonl", "data/other/c.jsonl"]
    assert left["a link to a folder above it"] == ["data/other/up", "data/sub/up"]
    assert find(tmp_path, "data/*/*.jsonl")[0] == ["data/again/b.jsonl", "data/sub/c.jsonl"]
    assert find(tmp_path, "data/linked/*/*.jsonl")[0] == ["data/linked/deep/b.jsonl"]


def test_two_links_that_lead_to_each_other_end(tmp_path: Path):
    make_files(tmp_path, "a/x.jsonl", "b/y.jsonl")
    (tmp_path / "a/to-b").symlink_to("../b")
    (tmp_path / "b/to-a").symlink_to("../a")
    assert find(tmp_path, "**/*.jsonl")[0] == ["a/x.jsonl", "b/y.jsonl"]
    # Seen from one of them, each file once still.
    assert find(tmp_path, "a/**/*.jsonl")[0] == ["a/to-b/y.jsonl", "a/x.jsonl"]


def test_links_that_lead_nowhere_are_an_error_or_told(tmp_path: Path):
    make_files(tmp_path, "a.jsonl", "sub/b.jsonl")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".#lock.jsonl").symlink_to("user@host.1234")
    (tmp_path / "round").symlink_to("round")
    taken, left = find(tmp_path, "**/*.jsonl")
    assert taken == ["a.jsonl", "sub/b.jsonl"]
    assert left["a link that leads nowhere"] == ["gone", "round"]
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"c\.jsonl is a link to a file that does not exist"):
        find(tmp_path, "**/*.jsonl")


def test_what_is_no_regular_file_and_folders_that_are_named_are_told(tmp_path: Path):
    make_files(tmp_path, "a.jsonl", "b.jsonl/part-0")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert find(tmp_path, "*.jsonl") == (["a.jsonl"], {"a folder": ["b.jsonl"], "no regular file": ["pipe.jsonl"]})
    with pytest.raises(SourceError, match=r"matches no file .*left out, no regular file: .*pipe\.jsonl"):
        find(tmp_path, "pipe.jsonl")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_files(tmp_path, "a.jsonl", "locked/b.jsonl", ".locked/c.jsonl")
    scandir = os.scandir

    def refuse(path: str) -> Any:  # permissions do not hold for the user that tests often run as
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("miniplm.sources.listing.os.scandir", refuse)
    with pytest.raises(SourceError, match=r"the folder .*/locked cannot be listed: Permission denied"):
        find(tmp_path, "**/*.jsonl")
    assert find(tmp_path, "*.jsonl") == (["a.jsonl"], {})


ODD_NAMES = ["a[1]", "a{b,c}", "100% #1?", 'it\'s "so"', "zwölf 中", "new\nline", "back\\slash", "key=value", "a::b", " ", "~", "*"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_of_files_and_folders_are_found(tmp_path: Path, name: str):
    make_files(tmp_path / name, f"{name}.jsonl", "b.jsonl")
    assert len(find_source_files(make_source(f"{tmp_path}/{name}/*.jsonl"))) == 2
    assert len(find_source_files(make_source(f"{tmp_path}/*/*.jsonl"))) == 2
    files = find_source_files(make_source(f"{tmp_path}/{name}/{name}.jsonl"))
    assert str(tmp_path / name / f"{name}.jsonl") in [file.filesystem_path for file in files]


def test_a_folder_with_brackets_in_its_name_is_that_folder_before_it_is_a_pattern(tmp_path: Path):
    make_files(tmp_path, "a1/x.jsonl", "b1/x.jsonl")
    assert find(tmp_path, "[ab]1/*.jsonl")[0] == ["a1/x.jsonl", "b1/x.jsonl"]
    make_files(tmp_path, "[ab]1/y.jsonl")
    assert find(tmp_path, "[ab]1/*.jsonl")[0] == ["[ab]1/y.jsonl"]


def test_patterns_that_are_none_are_explained(tmp_path: Path):
    make_files(tmp_path, "a.jsonl")
    with pytest.raises(SourceError, match=r"`\*\*` stands for whole folders"):
        find(tmp_path, "a**.jsonl")
    with pytest.raises(SourceError, match=r"`\{a,b\}` is no pattern here"):
        find(tmp_path, "{a,b}.jsonl")
