"""A real S3 server, and a network that harms a tenth of what passes: files appear whole, runs end the same, refusals are told."""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from miniplm.errors import StorageError, StorageUnavailableError
from miniplm.selection.connection import connect
from miniplm.storage import s3 as object_stores
from miniplm.storage import s3_errors as store_errors
from miniplm.storage.root import Storage
from tests.command_line import environment, run_miniplm
from tests.fault_proxy import FaultProxy
from tests.tiny_runs import make_tiny_run

PART = object_stores.PART_BYTES
# Five parts, the last one short.
LARGE = 4 * PART + 12_345


@pytest.fixture
def proxy(s3_server):
    with FaultProxy(s3_server.port).run() as running:
        yield running


@pytest.fixture
def open_root(s3_server, monkeypatch, request):
    """Opens a root of this test's own, at an endpoint and with credentials that need not be the right ones."""

    def open_at(endpoint=s3_server.endpoint, bucket=s3_server.bucket, **credentials):
        options = {"endpoint_url": endpoint, "key": s3_server.key, "secret": s3_server.secret, **credentials}
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        return Storage(f"s3://{bucket}/{re.sub(r'[^A-Za-z0-9]+', '-', request.node.name)}")

    return open_at


def list_uploads(server, prefix):
    answer = server.open_filesystem().call_s3("list_multipart_uploads", Bucket=server.bucket, Prefix=prefix)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def is_part(request_line):
    return "partNumber=" in request_line


def is_completion(request_line):
    return request_line.startswith("POST") and "uploadId=" in request_line


def run_python(program, variables):
    return subprocess.Popen([sys.executable, "-c", program], env=environment(variables), start_new_session=True)


def test_a_reader_sees_the_old_file_or_the_new_one_whole(s3_server, proxy, open_root):
    reader, old, new = open_root(), os.urandom(LARGE), os.urandom(LARGE + PART)
    writer = open_root(proxy.endpoint)
    proxy.share, proxy.kinds = 0.4, ("500", "cut in request", "cut before answer", "delay")
    seen, ended = [], threading.Event()

    def poll():
        while not ended.is_set():
            if reader.exists("large"):
                content = reader.read_bytes("large")
                seen.append("old" if content == old else "new" if content == new else f"{len(content)} bytes of neither")
            else:
                seen.append("none")

    watcher = threading.Thread(target=poll)
    watcher.start()
    for name, content in (("old", old), ("new", new)):
        writer.write_bytes("large", content)
        deadline = time.monotonic() + 60  # until the reader has come round, which on a busy machine takes seconds
        while name not in seen and watcher.is_alive() and time.monotonic() < deadline:
            time.sleep(0.1)
    ended.set()
    watcher.join()
    assert list(dict.fromkeys(seen)) == ["none", "old", "new"]
    assert seen == sorted(seen, key=["none", "old", "new"].index)
    assert proxy.num_faults
    assert list_uploads(s3_server, "") == []


def test_a_killed_upload_leaves_nothing_visible_and_is_cleared_away(s3_server, proxy, open_root):
    parts, storage = [], open_root()
    # The last request of an upload waits, so that all parts are there when the process dies.
    proxy.delay_seconds = 60

    def choose(request_line):
        if is_part(request_line):
            parts.append(request_line)
        return "delay" if is_completion(request_line) else None

    proxy.choose = choose
    program = f"from miniplm.storage.root import Storage; Storage({storage.root!r}).write_bytes('large', bytes({LARGE}))"
    process = run_python(program, {**s3_server.variables, "AWS_ENDPOINT_URL": proxy.endpoint})
    while not proxy.counts["delay"]:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert len(parts) == 5
    assert (storage.exists("large"), storage.list_names("")) == (False, [])
    folder = storage.root.rpartition("/")[2]
    assert list_uploads(s3_server, folder) == [f"{folder}/large"]
    # It could be another machine's, at work: only what is a day old goes.
    assert storage.delete_temporary_files("") == 0
    assert storage.filesystem.abort_old_uploads(storage.path("other"), 0) == 0
    assert storage.filesystem.abort_old_uploads(storage.path(""), 0) == 1
    assert list_uploads(s3_server, folder) == []
    storage.write_bytes("large", b"again")
    assert storage.read_bytes("large") == b"again"


def refuse_second_part(request_line):
    return "403" if "partNumber=2" in request_line else None


def interrupt_at_second_part(request_line):
    if "partNumber=2" not in request_line:
        return None
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # Ctrl-C
    return "delay"


@pytest.mark.parametrize(("choose", "error"), [(refuse_second_part, StorageError), (interrupt_at_second_part, KeyboardInterrupt)])
def test_an_upload_that_ends_with_an_exception_is_aborted(s3_server, proxy, open_root, choose, error):
    storage = open_root(proxy.endpoint)
    proxy.choose = choose
    with pytest.raises(error):
        storage.write_bytes("large", bytes(LARGE))
    assert list_uploads(s3_server, "") == []
    assert not storage.exists("large")


def test_a_completion_whose_answer_is_lost_is_a_completed_upload(s3_server, proxy, open_root):
    storage, content = open_root(proxy.endpoint), os.urandom(LARGE)
    # As stores do that forget an upload once it is completed: the second try is told that there is none.
    kinds = iter(["cut before answer", "404"])
    proxy.choose = lambda request_line: next(kinds, None) if is_completion(request_line) else None
    storage.write_bytes("large", content)
    assert next(kinds, "told both") == "told both"
    assert storage.read_bytes("large") == content
    assert list_uploads(s3_server, "") == []


def test_what_another_process_publishes_is_seen_at_once(s3_server, open_root):
    storage = open_root()
    storage.write_bytes("a", b"1")
    assert (storage.exists("b"), storage.list_names(""), storage.size_bytes("a")) == (False, ["a"], 1)
    program = f"from miniplm.storage.root import Storage; s = Storage({storage.root!r}); s.write_bytes('a', b'two'); s.write_bytes('b', b'')"
    assert run_python(program, s3_server.variables).wait() == 0
    assert (storage.exists("b"), storage.list_names(""), storage.size_bytes("a")) == (True, ["a", "b"], 3)
    assert (storage.read_bytes("a"), storage.read_bytes("b")) == (b"two", b"")


def test_every_way_of_reading_bears_faults(s3_server, proxy, open_root, tmp_path):
    storage, content = open_root(proxy.endpoint), os.urandom(LARGE)
    storage.write_bytes("folder/large", content)
    storage.write_bytes("folder/empty", b"")
    storage.write_json("folder/small.json", {"a": 1})
    digest = storage.digest("folder/large")
    proxy.share = 0.3
    assert storage.read_bytes("folder/large") == content
    assert storage.digest("folder/large") == digest
    folder = storage.download("folder", tmp_path / "copy")
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == {"large": LARGE, "empty": 0, "small.json": 13}
    assert (folder / "large").read_bytes() == content
    for _ in range(3):
        assert storage.read_json("folder/small.json") == {"a": 1}
        assert storage.list_names("folder") == ["empty", "large", "small.json"]
        assert storage.size_bytes("folder/large") == LARGE
    with storage.open("folder/large") as file:
        file.seek(LARGE - 10)
        assert file.read() == content[-10:]
    storage.delete("folder")
    assert storage.list_names("folder") == []
    assert proxy.num_faults > 5


def use_all(storage):
    """Each way to look and to write, so that none is forgotten."""
    yield "exists", lambda: storage.exists("a")
    yield "size", lambda: storage.size_bytes("a")
    yield "list", lambda: storage.list_names("a")
    yield "open", lambda: storage.open("a")
    yield "read", lambda: storage.read_bytes("a")
    yield "write", lambda: storage.write_bytes("a", b"")
    yield "delete", lambda: storage.delete("a")
    yield "old uploads", lambda: storage.delete_temporary_files("")


def check_all(storage, kind, told):
    for name, use in use_all(storage):
        if name == "old uploads" and kind is StorageError:
            continue  # only tidying up: a store may refuse it
        with pytest.raises(StorageError, match=told) as raised:
            use()
        assert type(raised.value) is kind, name
        assert storage.root in str(raised.value) or name == "old uploads"


def test_a_wrong_secret_is_told_and_not_shown(s3_server, open_root):
    check_all(open_root(secret="hunter2"), StorageError, r"the secret is wrong\. Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError) as raised:
        open_root(secret="hunter2").write_bytes("a", b"")
    assert "hunter2" not in str(raised.value)
    check_all(open_root(key="nobody"), StorageError, "does not know these credentials, or they have expired")


def test_a_bucket_that_does_not_exist_is_told(open_root):
    check_all(
        open_root(bucket="nobucket"), StorageError, r"the bucket nobucket does not exist at http://127\.0\.0\.1:\d+\. Make it"
    )


def test_no_credentials_are_told(open_root, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    check_all(open_root(key=None, secret=None), StorageError, "there are no credentials. Set AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize(("hours", "told"), [(2, r"by 2\.0 hours \(ahead\)"), (-0.5, r"by 30 minutes \(behind\)")])
def test_a_clock_that_is_wrong_is_told_with_the_difference(open_root, monkeypatch, hours, told):
    shift = datetime.timedelta(hours=hours)

    class WrongClock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) + shift

    monkeypatch.setattr(
        "botocore.auth.get_current_datetime", lambda remove_tzinfo=True: WrongClock.now(datetime.UTC).replace(tzinfo=None)
    )
    monkeypatch.setattr(store_errors, "datetime", WrongClock)
    check_all(open_root(), StorageError, f"clock differs from the store's {told}.*Set the clock right")


def test_a_store_that_does_not_answer_is_told_soon(s3_server, open_root, monkeypatch):
    monkeypatch.setattr(object_stores, "FIRST_ANSWER_SECONDS", 0.5)
    check_all(
        open_root("http://127.0.0.1:9"), StorageUnavailableError, r"at http://127\.0\.0\.1:9 cannot be reached.*check that it runs"
    )


def test_a_store_that_goes_on_failing_is_told_when_the_budget_is_spent(proxy, open_root, monkeypatch):
    storage = open_root(proxy.endpoint)
    storage.write_bytes("a", b"")
    monkeypatch.setattr(object_stores, "BUDGET_SECONDS", 0.25)
    proxy.share, proxy.kinds = 1.0, ("503",)
    # On a busy machine one try may take longer than the budget.
    check_all(storage, StorageUnavailableError, r"answers 503.*after (\d+ tries in|1 try of) \d+ s; it throttles")


def test_duckdb_reads_through_faults_and_does_not_take_an_outage_for_damage(proxy, open_root, monkeypatch):
    storage = open_root(proxy.endpoint)
    for index in range(6):
        with storage.publish(f"[{index}].parquet") as path:
            pq.write_table(pa.table({"a": range(1000)}), path)
    files = ", ".join(f"'{storage.url(f'[[]{index}].parquet')}'" for index in range(6))
    query = f"SELECT count(*), sum(a) FROM read_parquet([{files}])"
    proxy.share = 0.3
    with connect(storage) as connection:
        assert connection.execute(query).fetchall() == [(6000, 6 * 499_500)]
    assert proxy.num_faults
    monkeypatch.setattr(object_stores, "BUDGET_SECONDS", 0.25)
    proxy.choose = lambda request_line: "500" if request_line.startswith("GET") and "parquet" in request_line else None
    with pytest.raises(StorageUnavailableError, match="answers 500 InternalError"), connect(storage) as connection:
        connection.execute(query)


def find_files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_run_with_a_tenth_of_its_requests_harmed_ends_with_the_bytes_of_a_local_one(s3_server, prefect_server, finished_run):
    sources_folder = finished_run.config.parent / "sources"
    student = yaml.safe_load(finished_run.config.read_text())["students"][0]
    students = f"students={json.dumps([student])}"
    filesystem = s3_server.open_filesystem()
    for name in ("a", "b"):
        filesystem.put_file(str(sources_folder / f"{name}.jsonl"), f"{s3_server.bucket}/sources/{name}.jsonl")
    sources = f"corpus.sources=[{{path: 's3://{s3_server.bucket}/sources/*.jsonl', domain: meta.domain}}]"
    root = f"s3://{s3_server.bucket}/run"
    with FaultProxy(s3_server.port, share=0.1, seed=1, delay_seconds=0.1).run() as proxy:
        variables = {**prefect_server, **s3_server.variables, "AWS_ENDPOINT_URL": proxy.endpoint}
        given = [part for override in (f"storage={root}", sources, students) for part in ("--set", override)]
        run = run_miniplm("run", str(finished_run.config), *given, "--verbose", prefect=variables)
        assert run.returncode == 0, run.stderr
        assert all(proxy.counts[kind] for kind in proxy.kinds), proxy.counts
    ours = {path[len(root) - 4 :]: filesystem.cat_file(path) for path in filesystem.find(root.removeprefix("s3://"))}
    # The local one has trained another student too.
    theirs = {path: content for path, content in find_files(finished_run.data).items() if not path.startswith("training/pretrain")}
    compared = [path for path in theirs if path.endswith(".parquet") or path.startswith("selections/")]
    assert {path.partition("/")[0] for path in compared} == {"corpora", "scores", "selections", "training"}
    assert {path: ours.get(path) == theirs[path] for path in compared} == dict.fromkeys(compared, True)
    assert sorted(path for path in ours if path.endswith(".parquet")) == sorted(p for p in theirs if p.endswith(".parquet"))
    assert list_uploads(s3_server, "") == []
    secret = s3_server.secret.encode()
    held = {**ours, **find_files(Path(prefect_server["PREFECT_HOME"])), "out": (run.stdout + run.stderr).encode()}
    assert [path for path, content in held.items() if secret in content] == []


def test_commands_end_with_2_and_one_message(s3_server, prefect_server, tmp_path):
    config = make_tiny_run(tmp_path)
    cases = [
        (
            ("run", str(config), "--set", f"storage=s3://{s3_server.bucket}/x"),
            {"AWS_SECRET_ACCESS_KEY": "hunter2"},
            "the secret is wrong",
        ),
        (("status", "tiny", "--storage", "s3://nobucket/x"), {}, "the bucket nobucket does not exist"),
        (
            ("inspect", "tiny", "--storage", f"s3://{s3_server.bucket}/x"),
            {"AWS_SECRET_ACCESS_KEY": "hunter2"},
            "the secret is wrong",
        ),
    ]
    for arguments, variables, told in cases:
        result = run_miniplm(*arguments, prefect={**prefect_server, **s3_server.variables, **variables})
        assert result.returncode == 2, (arguments, result.stderr)
        assert told in result.stderr
        assert not [word for word in ("Traceback", "hunter2", s3_server.secret) if word in result.stdout + result.stderr]
