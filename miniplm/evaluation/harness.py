"""The calls of lm-evaluation-harness: a task and a model in, an accuracy with its standard error out.

The harness is imported where it is called: that takes seconds, and it is an extra.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from miniplm.errors import EvaluationError, first_line
from miniplm.evaluation.tasks import find_local_tasks
from miniplm.models.devices import describe_memory, device_errors, is_out_of_memory, use_device
from miniplm.models.loading import load_causal_model
from miniplm.records.manifests import TaskResult
from miniplm.tokenizers.tokenizer import load_tokenizer

# Sequences a forward pass: a GPU's are found by trying, on a CPU more of them are not faster.
_CPU_BATCH = 8
_LARGEST_BATCH = 64
# Where the harness keeps the tasks of the paper. Its whole index takes ten seconds.
_STOCK_FOLDERS = ("hellaswag", "lambada", "winogrande", "openbookqa", "arc", "piqa", "siqa", "storycloze")
_METRICS = ("acc_norm", "acc")

# Told the share of a task that is done, and a remark for people.
TaskCallback = Callable[[float, str], None]


def open_zero_shot_model(folder: Path, dtype: str, device: torch.device, trust_remote_code: bool = False) -> Any:
    """The model and the tokenizer of a folder as the harness' `HFLM`; no BOS is put before a text, as none was in training.

    Log-probabilities are taken in float32. `trust_remote_code` is about the tokenizer. Raises `ModelError` where a
    file is missing, damaged or unsafe, `TokenizerError` where the folder has no tokenizer.
    """
    from lm_eval.models.huggingface import HFLM

    tokenizer = load_tokenizer(str(folder), None, trust_remote_code).tokenizer
    with device_errors(device, f"loading model {folder.name}"):
        model, device, _ = load_causal_model(folder, dtype, device)
    with _quiet_logs():
        harness_model = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=_CPU_BATCH if device.type == "cpu" else "auto",
            max_batch_size=_LARGEST_BATCH,
            add_bos_token=False,
            softmax_dtype="float32",  # in bfloat16 two answers often have the same log-probability
        )
    # The harness draws bars of its own, which nothing but this argument turns off; `measure_task` tells the same.
    harness_model.loglikelihood = partial(harness_model.loglikelihood, disable_tqdm=True)
    return harness_model


def measure_task(
    model: Any, task: Any, limit: int | None = None, on_progress: TaskCallback = lambda share, detail: None
) -> TaskResult:
    """The accuracy of a model at a task without examples in its prompts (0-shot), over the first `limit` documents or all.

    `model` and `task` are the harness'. The accuracy is the mean of acc_norm, that of the choice with the largest
    log-probability a character, where the task has it, else of acc; its standard error is the harness' s / sqrt(n), s the
    sample's standard deviation. Raises `EvaluationError` where the task has no accuracy, or memory runs out.
    """
    import lm_eval
    from lm_eval.api.metrics import mean_stderr

    name, device, num_done = task.task_name, model.device, 0

    def tell(module: Any, arguments: Any, output: Any) -> None:
        nonlocal num_done
        total = len(task.instances)
        num_done = min(num_done + len(arguments[0]), total)
        on_progress(num_done / total, f"{name}: {num_done:,} of {total:,} requests")

    # Some task files ask for examples of their own; the paper's figures are without.
    task.set_config(key="num_fewshot", value=0)
    # The harness has no callback; each forward pass of its model is a batch of requests.
    hook = model.model.register_forward_hook(tell)
    try:
        with _quiet_logs(), use_device(device), device_errors(device, f"task {name}"):
            # Its own standard errors come with a bootstrap of LAMBADA's perplexity, which is not asked for.
            results = lm_eval.evaluate(model, {"tasks": {name: task}}, limit=limit, bootstrap_iters=0)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise EvaluationError(
            f"task {name}: memory ran out ({describe_memory(device)}); free some, or evaluate on another scoring.device"
        ) from error
    finally:
        hook.remove()
    samples = results["samples"][name]
    metric = next((metric for metric in _METRICS if metric in samples[0]), None)
    if metric is None:
        raise EvaluationError(
            f"task {name} has no accuracy (acc_norm or acc), only {', '.join(samples[0]['metrics'])}; leave it out of evaluation.tasks"
        )
    # Where a task has several filters, each document is there once for each.
    values = [float(sample[metric]) for sample in samples if sample["filter"] == samples[0]["filter"]]
    return TaskResult(
        accuracy=sum(values) / len(values),
        standard_error=float(mean_stderr(values)) if len(values) > 1 else None,
        metric=metric,
        num_documents=len(values),
    )


@contextmanager
def open_tasks(names: Sequence[str], task_folder: str | None = None) -> Iterator[Callable[[str], Any]]:
    """Gives the function that loads a task by its name, those of the task folder before the harness' own.

    That function raises `EvaluationError` where a task's data cannot be fetched. Raises what `find_local_tasks` raises.
    """
    local = find_local_tasks(task_folder)
    with tempfile.TemporaryDirectory(prefix="miniplm-tasks-") as overlay:
        for index, task in enumerate(local[name] for name in names if name in local and local[name].data_files is not None):
            # The harness would look for relative files from the working folder.
            kwargs = task.dataset_kwargs | {"data_files": task.data_files}
            content = {"include": str(task.path), "task": task.name, "dataset_kwargs": kwargs}
            (Path(overlay) / f"{index}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        manager = _make_manager(names, [*([task_folder] if task_folder else []), overlay])

        def load(name: str) -> Any:
            try:
                with _quiet_logs():
                    return manager.load(name)["tasks"][name]
            except Exception as error:  # hubs, files and Python in task files fail each in a way of its own
                cause: BaseException = error
                while cause.__cause__ is not None:
                    cause = cause.__cause__
                advice = (
                    f"it is that of {local[name].path}: mend the file, or its data"
                    if name in local
                    else "check that its data can be fetched from the hub; on a machine without one put the task with local data into "
                    "evaluation.task_folder (`make tasks` makes such a folder)"
                )
                raise EvaluationError(
                    f"task {name} cannot be loaded: {type(cause).__name__}: {first_line(cause)}; {advice}"
                ) from error

        yield load


def index_tasks(task_folder: str | None = None) -> dict[str, tuple[str, ...]]:
    """All that the harness and a task folder have, by name: a task with itself alone, a group or a tag with its members."""
    manager = _make_manager(None, [task_folder] if task_folder else [])
    members: dict[str, tuple[str, ...]] = {name: (name,) for name in manager.all_subtasks}
    members |= {name: tuple(sorted(manager.task_index[name].tags)) for name in manager.all_tags}
    for name in manager.all_groups:
        listed = manager.task_index[name].cfg.get("task") or []
        members[name] = tuple(str(member.get("task") if isinstance(member, dict) else member) for member in listed)
    return members


def _make_manager(names: Sequence[str] | None, folders: Sequence[str]) -> Any:
    """The harness' index of its tasks and those of the folders, which come first; only as much of it as `names` need, for None all."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    root = Path(lm_eval.__file__).parent / "tasks"
    with _quiet_logs():
        if names is not None:
            few = TaskManager(include_path=[*(root / folder for folder in _STOCK_FOLDERS), *folders], include_defaults=False)
            if set(names) <= set(few.all_subtasks):
                return few
        return TaskManager(include_path=list(folders))


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """The harness warns of what is meant here: a model that is loaded already, tasks that take another's place."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
