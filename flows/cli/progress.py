"""Live progress in the terminal: a bar a piece of work, with rate and time left; plain lines where nobody watches live."""

from __future__ import annotations

import threading
import time

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from miniplm.progress import Progress

_SECONDS_BETWEEN_LINES = 15.0
_MOMENT_SECONDS = 0.2


class TerminalProgress:
    """Shows `Progress` as it is reported; a context manager around the work."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bars = Bars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rate]}", style="cyan"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="dim"),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=console,
            refresh_per_second=4,
        )
        self._works: dict[str, _Work] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> TerminalProgress:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            work = self._works.get(progress.key)
            if work is None:
                bar = self._bars.add_task(progress.key, total=progress.total, rate="", left="", detail="")
                work = self._works[progress.key] = _Work(bar, progress.done)
            elif work.begins_anew(progress):
                self._bars.reset(work.bar, total=progress.total)
                work = self._works[progress.key] = _Work(work.bar, progress.done)
            rate = work.rate(progress)
            finished = progress.total is not None and progress.done >= progress.total
            left = (
                ""
                if finished or not rate or progress.total is None
                else f"{_duration((progress.total - progress.done) / rate)} left"
            )
            # One thing has no rate.
            shown = f"{_amount(rate, progress.unit)}/s" if rate and progress.total != 1 else ""
            if self._live:
                self._bars.update(
                    work.bar,
                    description=progress.key,
                    completed=progress.done,
                    total=progress.total,
                    rate=shown,
                    left=left,
                    detail=progress.detail,
                )
            elif work.is_due(finished):
                share = (
                    ""
                    if not progress.total
                    else f" of {_amount(progress.total, progress.unit)} ({100 * progress.done / progress.total:.0f} %)"
                )
                parts = [f"{progress.key}: {_amount(progress.done, progress.unit)}{share}", shown, left, progress.detail]
                self._console.print("  ".join(part for part in parts if part), highlight=False, markup=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Prints a line above the bars."""
        self._console.print(line, highlight=False)


class _Work:
    """When a piece of work began, and when its last line was printed."""

    def __init__(self, bar: TaskID, done: float) -> None:
        self.bar = bar
        self._started = time.monotonic()
        self._first_done = done
        self._finished_at: float | None = None
        self._printed = 0.0
        self._finished = False

    def begins_anew(self, progress: Progress) -> bool:
        """Whether this is other work of the same name, as the next run of a sweep has; threads' last words come up to a moment late."""
        is_over = self._finished_at is not None and time.monotonic() - self._finished_at > _MOMENT_SECONDS
        return progress.done < self._first_done or (is_over and progress.done != progress.total)

    def rate(self, progress: Progress) -> float:
        if progress.done == progress.total:
            self._finished_at = time.monotonic()
        seconds = time.monotonic() - self._started
        return (progress.done - self._first_done) / seconds if seconds > 0.2 else 0.0

    def is_due(self, finished: bool) -> bool:
        now = time.monotonic()
        due = (finished and not self._finished) or (not finished and now - self._printed >= _SECONDS_BETWEEN_LINES)
        if due:
            self._printed, self._finished = now, finished
        return due


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{value / size:.1f} {name}"
    return f"{value:,.0f} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
