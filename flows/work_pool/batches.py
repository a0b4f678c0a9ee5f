"""How many shards a flow run gets: enough that starting it hardly counts, few enough that every worker has work."""

from __future__ import annotations

from collections.abc import Sequence

from miniplm.records.manifests import ScoreShardManifest

# The start of a process (Python, the model, its compilation) may take this share of the time it then scores for.
_START_SHARE = 0.01
# Batches a worker, running or waiting for it: the next one waits while one runs, so that no worker does.
_BATCHES_A_WORKER = 2
# The server takes parameters of half a megabyte, and shards are named in them.
_MOST_SHARDS = 10_000


def choose_batch_size(num_free: int, num_workers: int, measured: Sequence[ScoreShardManifest], wanted: int | str = "auto") -> int:
    """Shards a flow run, of `num_free` that nobody works on; 0 where there is none.

    `wanted` is what the configuration says. With `auto` and nothing measured yet it is one shard, which measures; then
    start / (0.01 * shard), both in seconds as the latest manifests say, and at most the share of each of `num_workers`.
    """
    if num_free <= 0:
        return 0
    if wanted != "auto":
        return min(int(wanted), num_free, _MOST_SHARDS)
    starts = [manifest.start_seconds for manifest in measured if manifest.start_seconds is not None]
    if not starts:
        return 1
    shard_seconds = max(sum(manifest.seconds for manifest in measured) / len(measured), 1e-3)
    enough = -(-(sum(starts) / len(starts)) // (_START_SHARE * shard_seconds))
    share = -(-num_free // max(num_workers, 1))
    return max(1, min(int(enough), share, _MOST_SHARDS))


def count_room(num_workers: int, num_live: int, has_measured: bool) -> int:
    """How many more flow runs to make: two a worker, and while nothing is measured one, which is to measure."""
    return max(0, max(num_workers, 1) * (_BATCHES_A_WORKER if has_measured else 1) - num_live)


def cut_batches(free: Sequence[int], size: int, most: int) -> list[list[int]]:
    """The first shards of `free` in at most `most` batches of `size`."""
    return [list(free[start : start + size]) for start in range(0, len(free), size)][:most] if size else []


def describe_indices(part_indices: Sequence[int], kind: str) -> str:
    """Parts as a flow run's name has them, e.g. `files 16 to 31`; `kind` is one of them."""
    first, last = min(part_indices, default=0), max(part_indices, default=0)
    return f"{kind}s {first} to {last}" if last > first else f"{kind} {first}"
