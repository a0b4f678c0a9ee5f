"""Which tasks a run names, and where they come from: the harness' own, or files in a folder. Without importing the harness.

A task file in `evaluation.task_folder` is the harness' YAML. One with local data, for a machine without a hub:

    include: /PATH/TO/lm_eval/tasks/piqa/piqa.yaml     # the stock task; its prompt and metrics stay
    task: piqa                                         # the same name: it takes the stock task's place
    dataset_path: json
    dataset_name: null
    dataset_kwargs:
      data_files: {validation: piqa.jsonl}             # relative to this file, or a URL
    training_split: null                               # splits that the data do not have

`python -c "import lm_eval; print(lm_eval.__path__[0])"` prints where the stock tasks are. `!function` in a task file runs
Python code that lies beside it: a task folder is as trusted as a program.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from miniplm.errors import ConfigError
from miniplm.storage.root import digest_content, digest_file

# The nine tasks of the paper, by the names that its code gives to the harness (MiniPLM, scripts/eval/harness.sh).
PAPER_TASKS = (
    "hellaswag",
    "lambada_openai",
    "winogrande",
    "openbookqa",
    "arc_easy",
    "arc_challenge",
    "piqa",
    "social_iqa",
    "storycloze_2018",
)
# Its data are given on request only, so no hub has them.
STORYCLOZE = ("storycloze_2016", "storycloze_2018")
STORYCLOZE_HOME = "https://cs.rochester.edu/nlp/rocstories/"
_PAPER = "paper"


@dataclass(frozen=True)
class LocalTask:
    """A task file of the task folder. `data_files` are what its dataset is read from, absolute; None where it does not say."""

    name: str
    path: Path
    dataset_kwargs: dict[str, Any]
    data_files: Any | None

    @property
    def local_data(self) -> list[Path]:
        return [Path(name) for name in _list_names(self.data_files) if "://" not in name]

    def digest(self) -> str:
        """A digest of all that decides the task: its file and those it includes, Python beside it, and its data."""
        files = {str(index): digest_file(path) for index, path in enumerate(_list_includes(self.path))}
        # All Python beside it: which of it a `!function` reaches is not known without running it.
        files |= {path.name: digest_file(path) for path in sorted(self.path.parent.glob("*.py"))}
        files |= {f"data {index}": digest_file(path) for index, path in enumerate(self.local_data)}
        return digest_content(files)


def resolve_tasks(names: Iterable[str]) -> tuple[str, ...]:
    """The tasks that a configuration names, each once, `paper` spelled out."""
    return tuple(dict.fromkeys(task for name in names for task in (PAPER_TASKS if name == _PAPER else (name,))))


def find_harness() -> str | None:
    """The version of lm-evaluation-harness, None where it is not installed."""
    return importlib.metadata.version("lm_eval") if importlib.util.find_spec("lm_eval") is not None else None


def require_harness() -> str:
    """As `find_harness`; `ConfigError` where it is not installed."""
    version = find_harness()
    if version is None:
        raise ConfigError(
            "evaluation.tasks needs lm-evaluation-harness, which is not installed: "
            'pip install "miniplm[eval]", or leave evaluation.tasks empty'
        )
    return version


def find_local_tasks(task_folder: str | None) -> dict[str, LocalTask]:
    """The tasks of a task folder by name; none for None. Raises `ConfigError` for no folder, a damaged file, or a name given twice."""
    if task_folder is None:
        return {}
    folder = Path(task_folder).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"evaluation.task_folder: there is no folder {task_folder!r} (looked from {Path.cwd()})")
    tasks: dict[str, LocalTask] = {}
    for path in sorted(folder.resolve().rglob("*.yaml")):
        content = _read_yaml(path)
        name = content.get("task")
        if not isinstance(name, str) or "group" in content:
            continue  # a group, or what other files include
        if name in tasks:
            raise ConfigError(
                f"evaluation.task_folder: task {name!r} is in {tasks[name].path} and in {path}; one name is one task, delete or rename one"
            )
        kwargs = content.get("dataset_kwargs") or {}
        tasks[name] = LocalTask(name, path, kwargs, _make_absolute(kwargs.get("data_files"), path.parent))
    return tasks


class _Loader(yaml.SafeLoader):
    """Reads a task file without running what it names: `!function` is a word here."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_bytes(), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"evaluation.task_folder: {path} is not valid YAML: {error}") from error
    return content if isinstance(content, dict) else {}


def _list_includes(path: Path) -> Iterator[Path]:
    """A task file, and the files it includes, each before those that it includes itself."""
    yield path
    includes = _read_yaml(path).get("include") or []
    for name in [includes] if isinstance(includes, str) else includes:
        included = path.parent / name
        if not included.is_file():
            raise ConfigError(f"evaluation.task_folder: {path} includes {name}, which is not there")
        yield from _list_includes(included)


def _make_absolute(data_files: Any, folder: Path) -> Any:
    if isinstance(data_files, dict):
        return {split: _make_absolute(files, folder) for split, files in data_files.items()}
    if isinstance(data_files, list):
        return [_make_absolute(name, folder) for name in data_files]
    return str(folder / data_files) if isinstance(data_files, str) and "://" not in data_files else data_files


def _list_names(data_files: Any) -> list[str]:
    if isinstance(data_files, dict):
        return [name for files in data_files.values() for name in _list_names(files)]
    if isinstance(data_files, list):
        return [name for files in data_files for name in _list_names(files)]
    return [data_files] if isinstance(data_files, str) else []
