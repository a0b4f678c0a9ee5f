"""Processes that are forks of one that has imported what they need, which would cost seconds each time.

`multiprocessing` has one such server a process, and what was last said is what it imports: so it is said here, once.
"""

from __future__ import annotations

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.warm_miniplm", "tests.miniplm.group_trainings"])
