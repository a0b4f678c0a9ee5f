"""What the commands share: the run or configuration they act on, the flags, and the quiet start of Prefect."""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from flows.cli.process import provide_caches
from flows.cli.terminal import PlainConsole
from flows.cli.verbosity import set_verbose
from miniplm.errors import ConfigError, first_line, is_passing, list_offenders

if TYPE_CHECKING:
    from miniplm.config.run import RunConfig
    from miniplm.progress import ProgressCallback
    from miniplm.run.plan import RunPlan

Result = TypeVar("Result")

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="[CONFIG|RUN]",
        help="YAML file of a run (path or URL), or the name of a run at --storage; may be left out where that holds one run only.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Change a field of the configuration, e.g. selection.ratio=0.3; may be repeated."
    ),
]
StorageRoot = Annotated[str, typer.Option("--storage", help="Where to look for a run that is given by name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON, for machines.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the log of Prefect and of the libraries.")]

DEFAULT_STORAGE = "./data"
_COMMON = {
    "target": (Target, None),
    "overrides": (Overrides, None),
    "storage": (StorageRoot, DEFAULT_STORAGE),
    "as_json": (AsJson, False),
    "verbose": (Verbose, False),
}
# Of libraries that draw bars of their own; the one of `watched_flow` tells the same.
_WITHOUT_BARS = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

_PAUSES_SECONDS = (2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Asked:
    """What a command on a run is asked: for which run or configuration, changed how, looked for where, and how to tell the result."""

    target: str | None
    overrides: list[str] | None
    storage: str
    as_json: bool
    verbose: bool

    def resolve_config(self, *overrides: str) -> RunConfig:
        """The configuration, with these overrides after the user's own. Raises what `resolve_config` raises."""
        return resolve_config(self.target, [*(self.overrides or ()), *overrides], self.storage)


def on_a_run(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command CONFIG|RUN before its own options and --set, --storage, --json and --verbose after them; it gets them as `Asked`, its first argument."""

    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    common = [inspect.Parameter(name, kind, annotation=option, default=default) for name, (option, default) in _COMMON.items()]
    signature = inspect.Signature([common[0], *own, *common[1:]])

    @wraps(command)
    def call(*positional: Any, **named: Any) -> None:
        bound = signature.bind(*positional, **named)
        bound.apply_defaults()
        asked = Asked(**{name: bound.arguments.pop(name) for name in _COMMON})
        start_quietly(asked.verbose)
        command(asked, **bound.arguments)

    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {}
    return call


def resolve_config(target: str | None, overrides: Sequence[str] | None, storage: str = DEFAULT_STORAGE) -> RunConfig:
    """The configuration of a YAML file, or the one that a run's record keeps; overrides apply to both.

    Raises `ConfigError` or `RunError` where there is neither, or where none is named and there is not just one run.
    """
    from miniplm.config.files import apply_override, check_config, load_config

    if target is None:
        target = _find_only_run(storage)
    elif is_config_file(target):
        if storage != DEFAULT_STORAGE:
            raise ConfigError(
                f"--storage is where to look for a run that is given by name, and {target} is a configuration, which names its root itself; "
                f"for another one give --set storage={storage}"
            )
        return _as_on_workers(load_config(target, overrides or ()))
    from miniplm.records.run import load_run
    from miniplm.storage.root import Storage

    found = Storage(storage)
    content = load_run(found, target).config
    # Where its record was found, there the run is: the root may have been moved, copied or mounted elsewhere since. The same place
    # keeps the configuration's own spelling, as a run's plan is kept for that.
    if Storage(content["storage"]).root_path != found.root_path:
        content["storage"] = storage
    for override in overrides or ():
        apply_override(content, override)
    return _as_on_workers(check_config(content, f"run {target} at {storage}"))


def take_one(options: Mapping[str, object]) -> str | None:
    """The name of the option that was given, None where none was. Raises `ConfigError` where several were, as each asks for something else."""
    given = _list_given(options)
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude one another; give one of {', '.join(options)}")
    return given[0] if given else None


def refuse_beside(chosen: str | None, others: Mapping[str, object]) -> None:
    """Raises `ConfigError` where an option was given that would change nothing beside `chosen`."""
    if chosen is not None and (given := _list_given(others)):
        raise ConfigError(f"{' and '.join(given)} would change nothing beside {chosen}; leave out the one or the other")


def _list_given(options: Mapping[str, object]) -> list[str]:
    return [name for name, value in options.items() if value is not None and value is not False and value != []]


def is_config_file(target: str) -> bool:
    """Whether a command's target is the YAML file of a run, not a run's name."""
    return target.endswith((".yaml", ".yml", ".json")) or "/" in target or Path(target).is_file()


def _as_on_workers(config: RunConfig) -> RunConfig:
    """A run on a work pool as its workers see it: with absolute paths, and the dtypes that they have pinned."""
    if not config.is_on_work_pool:
        return config
    from miniplm.run.pinning import find_pinned, make_absolute
    from miniplm.storage.root import Storage

    config = make_absolute(config)
    return find_pinned(Storage(config.storage), config)


def _find_only_run(storage: str) -> str:
    from miniplm.records.run import list_runs
    from miniplm.storage.root import Storage

    runs = list_runs(Storage(storage))
    if len(runs) != 1:
        known = f"the runs at {storage} are {list_offenders(runs)}" if runs else f"there is no run at {storage}"
        raise ConfigError(f"give a CONFIG (a YAML file; deployments/configs/ holds examples) or the name of a run; {known}")
    return runs[0]


@contextmanager
def watched_stage(plan: RunPlan, verbose: bool, as_json: bool) -> Iterator[tuple[Console, ProgressCallback | None]]:
    """Live progress while a stage runs: by its flow, seen by a Prefect server, where a fleet works or a server is named.

    Without one the library is called as a notebook would, with the callback given here, and neither Prefect nor a server is started.
    """
    if plan.is_on_work_pool or names_server():
        with watched_flow(verbose, as_json) as console:
            yield console, None
        return
    from flows.cli.progress import TerminalProgress

    console = PlainConsole(stderr=as_json)
    with TerminalProgress(console) as progress:
        yield console, progress


def names_server() -> bool:
    """Whether the environment or one of Prefect's settings files seems to name a Prefect API; told without importing Prefect."""
    if os.environ.get("PREFECT_API_URL") or os.environ.get("MINIPLM_S3_BLOCK"):
        return True
    profiles = os.environ.get("PREFECT_PROFILES_PATH") or Path(os.environ.get("PREFECT_HOME") or "~/.prefect") / "profiles.toml"
    files = [Path(os.path.expanduser(profiles)), Path(".env"), Path("prefect.toml"), Path("pyproject.toml")]
    words = (b"PREFECT_API_URL", b"[api]", b"[tool.prefect")
    return any(word in path.read_bytes() for path in files if path.is_file() and os.access(path, os.R_OK) for word in words)


def try_again(work: Callable[[], Result]) -> Result:
    """What a piece of work gives; where it fails for a passing reason it is tried three times more, as a task is."""
    for seconds in _PAUSES_SECONDS:
        try:
            return work()
        except Exception as error:
            if not is_passing(error):
                raise
            logging.getLogger("miniplm").warning("%s; tried again in %d s", first_line(error), seconds)
            time.sleep(seconds)
    return work()


@contextmanager
def watched_flow(verbose: bool, as_json: bool) -> Iterator[Console]:
    """Live progress in the terminal while a flow runs; on stderr where stdout is for JSON."""
    start_quietly(verbose)
    console = PlainConsole(stderr=as_json)
    if console.is_terminal and not verbose:
        console.print("starting ...", end="\r", style="dim")
    from flows.cli.prefect_api import provide_prefect_api

    provide_prefect_api()
    from transformers.utils import logging as transformers_logging

    from flows.cli.progress import TerminalProgress
    from tasks.progress import watch_progress

    if not verbose:
        transformers_logging.disable_progress_bar()
    with TerminalProgress(console) as progress, watch_progress(progress):
        yield console


def print_json(content: Any) -> None:
    """Prints facts for machines on stdout; in ASCII where that cannot take all letters."""
    takes_all = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(content, indent=2, ensure_ascii=not takes_all, default=str))


def give(as_json: bool, found: Any, show: Callable[[Any], object]) -> None:
    """Tells a record, or several: as JSON for machines, or as `show` does for people."""
    if as_json:
        print_json([one.as_json() for one in found] if isinstance(found, list) else found.as_json())
    else:
        show(found)


def start_quietly(verbose: bool) -> None:
    """Sets Prefect up before it is imported: quiet unless `verbose`; whatever the user has set in the environment stays."""
    set_verbose(verbose)
    defaults = {
        "PREFECT_LOGGING_LEVEL": "INFO" if verbose else "CRITICAL",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "miniplm",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # A temporary server on a busy machine takes up to half a minute; Prefect's own limit is too close.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "TRANSFORMERS_VERBOSITY": "info" if verbose else "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "0" if verbose else "1",
        "TOKENIZERS_PARALLELISM": "true",
        # Read when CUDA starts: without it products of matrices may differ from run to run in their last bits.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    } | ({} if verbose else _WITHOUT_BARS)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    provide_caches(os.environ)
    if os.environ.get("MINIPLM_S3_BLOCK"):
        from flows.cli.prefect_api import provide_prefect_api

        provide_prefect_api()
        from tasks.workers import use_credentials

        use_credentials()
