"""An export as a whole: killed and resumed, refused, damaged, on a full disk, by two at once, to a folder and to a remote root."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from miniplm.config.exports import FORMATS, ExportConfig
from miniplm.corpus.reader import load_corpus_tokenizer
from miniplm.errors import BusyError, ConfigError, CorpusError, DamagedFileError, RunFailedError, StorageError, TokenizerError
from miniplm.export import job as jobs
from miniplm.export.exporting import export_selection
from miniplm.export.target import ExportTarget
from miniplm.progress import Progress
from tests.ends import Interrupted
from tests.miniplm.corpus_fixtures import save_tokenizer
from tests.miniplm.export.exported import Selected, select
from tests.miniplm.export.test_documents import read_rows
from tests.miniplm.export.test_formats import read_datatrove
from tests.tiny_runs import make_tokenizer


def read_folder(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def kill_at(number: int) -> Any:
    """A progress callback that ends the export at its `number`th moment of writing or reading back."""
    moments = 0

    def on_progress(progress: Progress) -> None:
        nonlocal moments
        moments += not progress.key.startswith("plan")
        if moments == number:
            raise Interrupted

    return on_progress


@pytest.mark.parametrize("format", ["hf", "megatron", "npy"])
def test_a_killed_export_goes_on_to_the_same_bytes(small: Selected, tmp_path: Path, format: str) -> None:
    small.export(format, tmp_path / "whole", shard_tokens=500)
    kills = 0
    while kills < 100:
        try:
            export_selection(small.job(format, tmp_path / "out", shard_tokens=500), resume=kills > 0, on_progress=kill_at(25))
            break
        except Interrupted:
            kills += 1
            assert {path.name for path in (tmp_path / "out").iterdir()} == {".miniplm-export"}
    assert 3 <= kills < 100
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")
    # There already, whole: nothing is made again.
    assert export_selection(small.job(format, tmp_path / "out", shard_tokens=500))[1]


def test_a_kill_while_files_are_moved_leaves_no_finished_export(
    small: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.export("ds", tmp_path / "whole", shard_tokens=500)
    moved: list[str] = []
    move = type(small.storage).move

    def move_two(self: Any, relative: str, to: str) -> None:
        if len(moved) == 2:
            raise Interrupted
        moved.append(to)
        move(self, relative, to)

    monkeypatch.setattr(type(small.storage), "move", move_two)
    with pytest.raises(Interrupted):
        small.export("ds", tmp_path / "out", shard_tokens=500)
    monkeypatch.undo()
    assert not (tmp_path / "out" / "manifest.json").exists()
    small.export("ds", tmp_path / "out", resume=True, shard_tokens=500)
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")


def test_files_are_the_same_wherever_they_go_and_whoever_makes_them(small: Selected, tmp_path: Path) -> None:
    small.export("litdata", tmp_path / "out", shard_tokens=500)
    small.export("litdata", "memory://exports/litdata", shard_tokens=500)
    memory = fsspec.filesystem("memory")
    remote = {path.removeprefix("/exports/litdata/"): memory.cat_file(path) for path in memory.find("/exports/litdata")}
    assert remote == read_folder(tmp_path / "out")


def test_a_damaged_file_is_found_before_anything_is_published(
    small: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = ExportTarget.put

    def damage(self: ExportTarget, name: str, path: Path) -> None:
        if name == "part-00001.bin":
            path.write_bytes(path.read_bytes()[:-2] + b"\x07\x00")
        put(self, name, path)

    monkeypatch.setattr(ExportTarget, "put", damage)
    with pytest.raises(RunFailedError, match=r"part-00001\.bin has digest .* Nothing is published"):
        small.export("megatron", tmp_path / "out", shard_tokens=500)
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".miniplm-export"}
    small.export("megatron", tmp_path / "out", resume=True, shard_tokens=500)
    small.export("megatron", tmp_path / "whole", shard_tokens=500)
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")


@pytest.mark.parametrize("format", FORMATS)
def test_a_writer_that_writes_other_rows_is_found_out(
    small: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """Digests of files agree, as they are of what was written; what is read out of them does not."""
    add = jobs.PartTally.add

    def forget_one(self: jobs.PartTally, row: Any) -> None:
        if self.num_rows or self.num_source_tokens:
            add(self, row)
        self.num_source_tokens += not self.num_rows and row.num_source_tokens

    monkeypatch.setattr(jobs.PartTally, "add", forget_one)
    with pytest.raises(RunFailedError, match=r"rows: \d+ read, \d+ written"):
        small.export(format, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".miniplm-export"}


def test_a_full_disk_keeps_what_is_finished_and_says_so(small: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = ExportTarget.put

    def fill(self: ExportTarget, name: str, path: Path) -> None:
        if name == "part-00002.jsonl":
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, name, path)

    monkeypatch.setattr(ExportTarget, "put", fill)
    with pytest.raises(StorageError, match=r"cannot write part-00002\.jsonl .* --resume goes on"):
        small.export("jsonl", tmp_path / "out", shard_tokens=500)
    monkeypatch.undo()
    small.export("jsonl", tmp_path / "out", resume=True, shard_tokens=500)
    assert len(read_rows(tmp_path / "out")) > 10


def test_a_target_that_holds_anything_else_is_refused(small: Selected, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"not empty: it holds mine\.txt"):
        small.export("jsonl", tmp_path / "full", resume=True)
    assert read_folder(tmp_path / "full") == {"mine.txt": b"mine"}
    with pytest.raises(ConfigError, match="is a file"):
        small.export("jsonl", tmp_path / "full" / "mine.txt")
    with pytest.raises(ConfigError, match=r"/below lies below .*/mine\.txt, which is a file"):
        small.export("jsonl", tmp_path / "full" / "mine.txt" / "below")
    with pytest.raises(ConfigError, match=r"target /proc/x cannot be made: .*; give a folder that this user may write to"):
        small.export("jsonl", Path("/proc/x"))
    with pytest.raises(ConfigError, match=r"target .*/nnn+ cannot be made: File name too long; give a folder"):
        small.export("jsonl", tmp_path / ("n" * 300))
    small.export("ds", tmp_path / "done")
    with pytest.raises(ConfigError, match=r"not empty: it holds manifest\.json, part-00000\.ds"):
        small.export("ds", tmp_path / "done", shard_tokens=500)
    (tmp_path / "done" / "part-00000.ds").unlink()
    with pytest.raises(DamagedFileError, match=r"part-00000\.ds is gone"):
        small.export("ds", tmp_path / "done")
    with pytest.raises(Interrupted):
        export_selection(small.job("ds", tmp_path / "half"), on_progress=kill_at(1))
    with pytest.raises(ConfigError, match="Give --resume to go on with it"):
        small.export("ds", tmp_path / "half")
    with pytest.raises(ConfigError, match="unfinished export of another selection or with other settings"):
        small.export("ds", tmp_path / "half", resume=True, shard_tokens=500)


@pytest.mark.parametrize("where", ["folder", "memory://exports/two"])
def test_two_exports_to_one_target_at_once_are_one(small: Selected, tmp_path: Path, where: str) -> None:
    to = str(tmp_path / "out") if where == "folder" else where
    job = small.job("jsonl", to)
    going, tried = threading.Event(), threading.Event()
    results: list[Any] = []

    def wait_once(progress: Progress) -> None:
        if progress.key == "export jsonl" and not going.is_set():
            going.set()
            assert tried.wait(20)

    thread = threading.Thread(target=lambda: results.append(export_selection(job, on_progress=wait_once)))
    thread.start()
    assert going.wait(20)
    try:
        with pytest.raises(BusyError, match=r"is working on an export to"):
            small.export("jsonl", to, resume=True)
    finally:
        tried.set()
        thread.join()
    assert results
    assert results[0][0].num_rows > 10
    names = ExportTarget(to).storage.list_names("")
    assert names == ["manifest.json", "part-00000.jsonl"]


def test_another_tokenizer_holds_the_same_texts(small: Selected, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "own", [{"text": "the quick brown fox jumps over the lazy dog. " * 5}], vocab_size=300)
    config = {"tokenizer": str(tmp_path / "own"), "shard_tokens": 500}
    manifest = small.export("ds", tmp_path / "ids", **config, bos_token="<|endoftext|>")
    small.export("jsonl", tmp_path / "texts", shard_tokens=500)
    own = small.job("ds", tmp_path / "x", **config).own
    assert own is not None
    ids = read_datatrove(tmp_path / "ids", "uint16")
    assert all(row[0] == row[-1] == own.eos_token_id for row in ids)
    assert [own.decode(row[1:-1]) for row in ids] == [row["text"] for row in read_rows(tmp_path / "texts")]
    assert manifest.num_eos == 2 * manifest.num_rows
    packed = small.export("mds", tmp_path / "packed", **config)
    assert packed.rows == "sequences, packed anew"
    assert (packed.num_eos, packed.num_tokens) == (manifest.num_rows, manifest.num_tokens - manifest.num_rows)


def test_a_tokenizer_that_cannot_hold_the_text_is_refused(small: Selected, tmp_path: Path) -> None:
    words = save_tokenizer(tmp_path / "words", "word")
    with pytest.raises(TokenizerError, match=r"cannot hold the text of document \d+ .* tokens are unknown"):
        small.export("megatron", tmp_path / "out", tokenizer=words)
    with pytest.raises(ConfigError, match="bos_token '<s>' is not in the vocabulary"):
        small.export("megatron", tmp_path / "out", bos_token="<s>")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_settings_that_do_not_fit_the_format_are_refused() -> None:
    for settings, reason in (
        ({"format": "jsonl", "tokenizer": "x"}, "tokenizer is for formats of token ids"),
        ({"format": "ds", "compression": "zstd"}, "compression is for jsonl"),
        ({"format": "mds", "bos_token": "x"}, "rows of mds are packed sequences"),
        ({"format": "ds", "eos_token": "x"}, "eos_token goes with tokenizer"),
        ({"format": "megatron", "loss_mask": True}, "loss_mask is for mds, ds, npy; megatron has no place"),
        ({"format": "ds", "to": "s3://key:secret@bucket/x"}, "holds credentials"),
    ):
        with pytest.raises(ValueError, match=reason):
            ExportConfig.model_validate({"to": "out", **settings})


def test_the_folder_of_an_export_may_be_named_by_its_selection() -> None:
    config = ExportConfig.model_validate({"format": "ds", "to": "out/{selection}/ds"})
    assert config.resolve("mean-0.5-1a2b").to == "out/mean-0.5-1a2b/ds"


def test_a_damaged_selection_or_one_without_text_is_refused(small: Selected, tmp_path: Path) -> None:
    empty = select(small.storage, small.corpus, ratio=0.0)
    with pytest.raises(CorpusError, match="holds no text"):
        Selected(small.storage, small.corpus, empty, []).export("ds", tmp_path / "none")
    changed = small.selection.model_copy(
        update={"shards": tuple(shard.model_copy(update={"digest": "sha256:0"}) for shard in small.selection.shards)}
    )
    with pytest.raises(CorpusError, match="make it again with `miniplm select CONFIG`"):
        Selected(small.storage, small.corpus, changed, []).export("ds", tmp_path / "damaged")


def test_characters_whose_rest_was_not_kept_are_counted(small: Selected, tmp_path: Path) -> None:
    manifest = small.export("jsonl", tmp_path / "out")
    assert sum(row["text"].count("\N{REPLACEMENT CHARACTER}") for row in read_rows(tmp_path / "out")) > 0
    assert manifest.counts["replaced_bytes"] > 0
    assert any("U+FFFD stands for" in note for note in manifest.notes)
    decoder = load_corpus_tokenizer(small.storage, small.corpus.corpus_id)
    assert manifest.first_row == decoder.decode(small.job("jsonl", "x").source.encode_documents([manifest.first_row])[0])


@pytest.fixture(autouse=True)
def _forget_memory() -> Iterator[None]:
    yield
    memory = fsspec.filesystem("memory")
    if memory.exists("/exports"):
        memory.rm("/exports", recursive=True)
