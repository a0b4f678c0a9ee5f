"""Assembles the commands, and turns every failure into a message and an exit code: 0, 1 (run failed), 2 (bad input)."""

from __future__ import annotations

import os
import sys
import traceback

import typer
from rich.console import Console

from flows.cli import exports, facts, fleet, runs, scaling, scoring, stages, sweeps
from flows.cli.process import check_current_folder, set_up_process
from flows.cli.terminal import show_controls
from flows.cli.verbosity import is_verbose
from miniplm import __version__
from miniplm.errors import ConfigError, MiniplmError, OutputError, RunFailedError

app = typer.Typer(
    name="miniplm",
    help="Corpus refinement for pre-training small language models: a teacher and a small reference model score every "
    "sequence of a corpus, the sequences that the teacher is surest of relative to the reference are kept, and students are "
    "trained on them.\n\nStart with `miniplm demo`, or `miniplm plan CONFIG` for what a run will cost. "
    "Every command takes a CONFIG (a YAML file) or the name of a run at --storage, or neither where there is one run only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RUNNING, STAGES, FACTS = "Run", "One stage at a time", "Look"
app.command("run", rich_help_panel=RUNNING)(runs.run)
app.command("demo", rich_help_panel=RUNNING)(runs.demo)
app.command("sweep", rich_help_panel=RUNNING)(sweeps.sweep)
app.command("plan", rich_help_panel=RUNNING)(runs.plan)
app.command("rescore", rich_help_panel=RUNNING)(fleet.rescore)
app.command("prepare", rich_help_panel=STAGES)(stages.prepare)
app.command("train-reference", rich_help_panel=STAGES)(stages.train_reference)
app.command("tune-teacher", rich_help_panel=STAGES)(stages.tune_teacher)
app.command("score", rich_help_panel=STAGES)(scoring.score)
app.command("select", rich_help_panel=STAGES)(stages.select)
app.command("export", rich_help_panel=STAGES)(exports.export)
app.command("train", rich_help_panel=STAGES)(stages.train)
app.command("evaluate", rich_help_panel=STAGES)(stages.evaluate)
app.command("report", rich_help_panel=STAGES)(stages.report)
app.command("status", rich_help_panel=FACTS)(facts.status)
app.command("inspect", rich_help_panel=FACTS)(facts.inspect)
app.command("scaling", rich_help_panel=FACTS)(scaling.scaling)
app.command("config", rich_help_panel=FACTS)(facts.config)
app.command("doctor", rich_help_panel=FACTS)(facts.doctor)


def _print_version(value: bool) -> None:
    if value:
        print(f"miniplm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
) -> None:
    pass


# What the command line leaves with after Ctrl-C and after SIGTERM.
_INTERRUPTED = (130, 143)


def main() -> None:
    """Runs the command line and exits with its code."""
    set_up_process()
    code = _run()
    # Native threads of DuckDB and PyArrow now and then abort a process that ends while they still start ("terminate called
    # without an active exception", once in 60 runs on a busy machine). A command that only reads leaves nothing to be
    # cleaned up; where Prefect was started, its server wants to be stopped the ordinary way.
    if "prefect" not in sys.modules and "duckdb" in sys.modules:
        os._exit(_flush(code))
    sys.exit(_flush(code))


def _flush(code: int) -> int:
    """Writes out what is still to be printed; gives the exit code, which a full disk changes, a reader that has gone does not."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()
        return code
    except OSError as error:
        return code or _tell_lost_output(error)
    return code


def _tell_lost_output(error: OSError) -> int:
    _silence_stdout()
    print(f"The output could not be written: {error.strerror}", file=sys.stderr)
    return 1


def _silence_stdout() -> None:
    """Keeps the interpreter from trying once more, and failing, at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run() -> int:
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        check_current_folder()
        app()
        return 0
    except (ConfigError, MiniplmError) as error:
        errors.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        errors.print(show_controls(str(error)), markup=False, emoji=False)
        return 2
    except OutputError as error:
        return _tell_lost_output(error)
    except SystemExit as left:
        if left.code in _INTERRUPTED:
            errors.print("[yellow]Stopped.[/] What is finished is kept; the same command goes on from there.")
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except Exception as error:
        if is_verbose():
            errors.print(traceback.format_exc(), markup=False)
        errors.print("[bold red]The run failed[/]: ", end="")
        said = str(error) if isinstance(error, RunFailedError) else f"{type(error).__name__}: {error}"
        errors.print(show_controls(said), markup=False, emoji=False)
        errors.print("What is finished is kept; the same command goes on from there. --verbose shows where it failed.")
        return 1
