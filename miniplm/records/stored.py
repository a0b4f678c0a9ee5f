"""Records at the storage root read back, and the files that they name looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from pydantic import ValidationError

from miniplm.errors import DamagedFileError
from miniplm.records.manifests import CheckpointMetrics, Record
from miniplm.storage.root import Storage

AnyRecord = TypeVar("AnyRecord", bound=Record)
Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_CHECKS = 32


@dataclass(frozen=True)
class ShardState(Generic[AnyRecord]):
    """Whether a shard is made: `done` with its manifest, `missing`, or `broken` with the reason."""

    shard_index: int
    state: Literal["done", "missing", "broken"]
    manifest: AnyRecord | None = None
    reason: str = ""


def check_all(storage: Storage, check: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What `check` says of each, in their order; at a remote root many at a time, as nearly all of it is waiting."""
    if storage.is_local:
        return [check(item) for item in items]
    with ThreadPoolExecutor(_MOST_CHECKS) as pool:
        return list(pool.map(check, items))


def read_record(storage: Storage, path: str, kind: type[AnyRecord]) -> AnyRecord:
    """The record of that kind at `path`. Raises `FileNotFoundError`, or `DamagedFileError` where it is no JSON or another record."""
    try:
        return kind.model_validate(storage.read_json(path))
    except NotADirectoryError as error:  # a file stands where its folder would
        raise FileNotFoundError(*error.args) from error
    except ValidationError as error:
        raise DamagedFileError(
            f"{storage.url(path)} is no {kind.__name__} ({describe_first_problem(error)}); delete it and run again"
        ) from error


def find_record(storage: Storage, path: str, kind: type[AnyRecord]) -> AnyRecord | None:
    """The record at `path`; None where there is none, or a damaged one. For what is made again where it is not found."""
    try:
        return read_record(storage, path, kind)
    except (FileNotFoundError, DamagedFileError):
        return None


def holds_files(storage: Storage, folder: str, digests: Mapping[str, str]) -> bool:
    """Whether every file is in the folder, with the digest given by its name."""
    return all(storage.holds(f"{folder}/{name}", digest) for name, digest in digests.items())


def parse_metrics(content: bytes) -> list[CheckpointMetrics]:
    """The rows of a `metrics.jsonl`, in their order."""
    return [CheckpointMetrics.model_validate(json.loads(line)) for line in content.splitlines() if line.strip()]


def describe_first_problem(error: ValidationError) -> str:
    """The field that is wrong first, and what is wrong with it."""
    problem = error.errors()[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
