"""`miniplm` in a process of its own that is ready to run: a fork of one that has imported everything, which costs seconds each time.

Imported by the fork server of `multiprocessing` alone. What a fork does is what the console script does; that the script itself
works, and imports only what a command needs, is checked by tests that start it.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import logging
import os
import sys
import tempfile
import threading
from typing import NoReturn

# As `environment` of command_line.py and the command line itself set them: some libraries read them when they are imported.
os.environ.update({"DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"})
for _name in [name for name in os.environ if name.startswith("PREFECT_")]:
    del os.environ[_name]
os.environ["PREFECT_HOME"] = tempfile.gettempdir()

gc.disable()  # while a million objects are made, which all stay
from flows.cli.options import start_quietly  # noqa: E402

start_quietly(verbose=False)

for _module in (
    "fastapi",
    "flows.cli.app",
    "flows.cli.embedded_server",  # with the whole server, as the client of a run without one loads it
    "flows.cli.prefect_api",
    "flows.cli.progress",
    "flows.cli.results",
    "flows.cli.tables",
    "flows.rescore_shards",
    "flows.run_miniplm",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "miniplm.evaluation.comparison",
    "miniplm.run.doctor",
    "miniplm.run.status",
    "pandas",  # of DuckDB and Arrow, where it is there
    "prefect.concurrency.sync",
    "prefect.flow_engine",
    "prefect.task_engine",
    "pyarrow.dataset",
    "pyarrow.pandas_compat",
    "s3fs",
    "safetensors.torch",
    "tensorboardX",
    "torch.utils.data",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2.tokenization_qwen2",
):
    importlib.import_module(_module)
# A fork then goes only through what it makes itself: the million objects of these modules cost half a second each time.
gc.collect()
gc.freeze()
gc.enable()


def run(arguments: list[str], variables: dict[str, str], cwd: str, out: str, err: str, namespaces_of: int | None) -> NoReturn:
    """The body of the fork: `miniplm ARGUMENTS` with exactly these variables, its output in two files.

    `namespaces_of` is the process whose user and mounts it has, where these are not the ones of the tests.
    """
    from flows.cli.app import main

    os.setsid()
    for kind in ("user", "mnt") if namespaces_of else ():
        with open(f"/proc/{namespaces_of}/ns/{kind}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"the {kind} namespace of {namespaces_of} cannot be entered")
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = ["miniplm", *arguments]
    # With heartbeats a flow that ends waits up to a second for their thread, ten seconds a run.
    enter_environment(variables, cwd, heartbeats=False, verbose="--verbose" in arguments)
    try:
        main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    end_process(code)


def enter_environment(variables: dict[str, str], cwd: str, heartbeats: bool = True, verbose: bool | None = None) -> None:
    """Makes this process one that was started with these variables in that folder; `verbose` is None where it is no command line."""
    import prefect.context
    import prefect.settings
    from prefect.logging.configuration import setup_logging

    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    # Prefect has read another environment; the command line sets these defaults before it imports Prefect.
    if verbose is not None:
        start_quietly(verbose)
    prefect.context.refresh_global_settings_context()
    if not heartbeats:
        prefect.settings.get_current_settings().flows.heartbeat_frequency = None
    logging.getLogger("miniplm").handlers.clear()
    setup_logging(incremental=False)


def end_process(code: int) -> NoReturn:
    """What an interpreter does at its end, and `multiprocessing` does not."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
