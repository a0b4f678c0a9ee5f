"""The record of a sweep: which runs it has, and which values each of them was made with."""

from __future__ import annotations

from pydantic import ValidationError

from miniplm import layout
from miniplm.errors import RunError
from miniplm.records.manifests import Record
from miniplm.records.stored import describe_first_problem
from miniplm.storage.root import Storage


class SweptRunRecord(Record):
    """A run of a sweep, and the value of each swept field in it, as it was written."""

    run_name: str
    values: dict[str, str]


class SweepRecord(Record):
    """A sweep: its runs have records of their own under their names, those of this sweep since `started_at`."""

    name: str
    runs: tuple[SweptRunRecord, ...]
    started_at: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """The swept fields, in the order in which they were given."""
        return tuple(self.runs[0].values) if self.runs else ()


def load_sweep(storage: Storage, name: str) -> SweepRecord:
    """The record of a sweep. Raises `RunError` where there is none, or where it cannot be read."""
    path = layout.sweep_record(name)
    try:
        return SweepRecord.model_validate(storage.read_json(path))
    except FileNotFoundError:
        raise RunError(
            f"{storage.root} has no sweep {name!r}; make it with `miniplm sweep CONFIG --set FIELD=VALUE,VALUE`"
        ) from None
    except ValidationError as error:
        raise RunError(f"{storage.url(path)} is not the record of a sweep: {describe_first_problem(error)}") from error


def save_sweep(storage: Storage, sweep: SweepRecord) -> None:
    """Publishes the record under the sweep's name, in place of an earlier one."""
    storage.write_json(layout.sweep_record(sweep.name), sweep.as_json())
