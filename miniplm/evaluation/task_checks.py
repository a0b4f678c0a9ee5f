"""Whether the tasks that a run names can be measured here, said before anything is trained."""

from __future__ import annotations

import difflib

from miniplm.config.run import EvaluationConfig
from miniplm.errors import ConfigError, list_offenders
from miniplm.evaluation.harness import index_tasks
from miniplm.evaluation.tasks import (
    PAPER_TASKS,
    STORYCLOZE,
    STORYCLOZE_HOME,
    LocalTask,
    find_local_tasks,
    require_harness,
    resolve_tasks,
)


def check_tasks(evaluation: EvaluationConfig) -> None:
    """Raises `ConfigError` where a task cannot be measured here: the harness is not installed, knows no such task, or has no data.

    Names of the paper's tasks and of the task folder are known without the harness; it is asked for others, which
    takes ten seconds. Whether a hub has the data of a stock task is not known before they are read.
    """
    tasks = resolve_tasks(evaluation.tasks)
    if not tasks:
        return
    require_harness()
    local = find_local_tasks(evaluation.task_folder)
    for name in tasks:
        if name in local:
            _check_data(local[name])
    unknown = [name for name in tasks if name not in local and name not in PAPER_TASKS]
    if unknown:
        _refuse_unknown(unknown, index_tasks(evaluation.task_folder), evaluation.task_folder)
    missing = [name for name in tasks if name in STORYCLOZE and name not in local]
    if missing:
        others = ", ".join(name for name in tasks if name not in STORYCLOZE)
        place = evaluation.task_folder or "a folder named by evaluation.task_folder"
        raise ConfigError(
            f"evaluation.tasks: the data of {missing[0]} are given on request only ({STORYCLOZE_HOME}), and no hub has them. Put them, "
            f"with a task file of `task: {missing[0]}`, into {place} (its form: miniplm/evaluation/tasks.py); or leave StoryCloze out: "
            f"evaluation.tasks=[{others}]"
        )


def _check_data(task: LocalTask) -> None:
    missing = [path for path in task.local_data if not path.is_file()]
    if missing:
        raise ConfigError(
            f"evaluation.task_folder: {task.path} names data that are not there: {list_offenders(missing)}; "
            "paths in data_files are relative to the task file"
        )


def _refuse_unknown(names: list[str], known: dict[str, tuple[str, ...]], task_folder: str | None) -> None:
    """Raises `ConfigError` for the first of `names` that is no single task; `known` are the harness' names with their members."""
    for name in names:
        members = known.get(name)
        if members == (name,):
            continue
        if members is not None:
            raise ConfigError(
                f"evaluation.tasks: {name!r} stands for several tasks in lm-evaluation-harness; name them: {list_offenders(members)}"
            )
        close = difflib.get_close_matches(name, [task for task, members in known.items() if members == (task,)], n=5)
        raise ConfigError(
            f"evaluation.tasks: there is no task {name!r} in lm-evaluation-harness {require_harness()}"
            + (f" or in {task_folder}" if task_folder else "")
            + (f"; similar names: {', '.join(close)}" if close else "; `lm_eval ls tasks` lists them")
        )
