import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniplm.errors import StorageError
from miniplm.selection.order_statistics import GroupedRuns, ScratchFile


def make_values(rng, num, kind):
    if kind == "ties":
        return rng.integers(-3, 4, num).astype(float)
    values = rng.normal(size=num)
    if kind == "one value often":
        values[rng.random(num) < 0.6] = 0.25
    if kind == "far out":
        values *= 10.0 ** rng.integers(-200, 200, num)
        values[0] = np.inf
    return values


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5000),
    st.integers(1, 6),
    st.sampled_from(["plain", "ties", "one value often", "far out"]),
    st.integers(1, 400),
    st.integers(50, 3000),
)
def test_ranks_and_counts_are_those_of_a_full_sort(tmp_path_factory, seed, num, num_groups, kind, run_values, most_waiting):
    rng = np.random.default_rng(seed)
    values, groups = make_values(rng, num, kind), rng.integers(0, num_groups, num).astype(np.uint8)
    with ScratchFile(tmp_path_factory.mktemp("runs") / "scratch") as scratch:
        runs = GroupedRuns(scratch, run_values, most_waiting)
        for start in range(0, num, 700):
            runs.add(groups[start : start + 700], values[start : start + 700])
        runs.finish()
        for asked in (list(range(num_groups)), [int(groups[0])]):
            wanted = np.sort(values[np.isin(groups, asked)])
            ranks = sorted({0, len(wanted) - 1, *rng.integers(0, len(wanted), 5).tolist()})
            assert runs.find(asked, ranks) == wanted[ranks].tolist()
            for value in (*wanted[ranks], -1e300, 1e300):
                assert runs.count_at_most(asked, value) == np.searchsorted(wanted, value, "right")


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64])
def test_a_scratch_file_gives_back_what_was_appended(tmp_path, dtype):
    with ScratchFile(tmp_path / "scratch") as scratch:
        stored = [scratch.append(np.arange(num, dtype=dtype)) for num in (5, 0, 200)]
        assert [array.read().tolist() for array in stored] == [list(range(5)), [], list(range(200))]
        assert stored[2].read(190, 5000).tolist() == list(range(190, 200))
        assert stored[2].read().dtype == dtype
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_folder_and_what_is_needed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ScratchFile(tmp_path / "scratch") as scratch:
        monkeypatch.setattr(os, "pwrite", refuse)
        with pytest.raises(StorageError, match=r"cannot write .*scratch: No space left on device.*11 bytes a candidate.*TMPDIR"):
            scratch.append(np.zeros(3))
