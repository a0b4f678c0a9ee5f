"""What lies at the storage root, looked at so often that it is new, so seldom that nothing waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

# A store gives a thousand names a request: of 150,000 shards or parts one look may take a quarter of a minute.
_SHARE = 0.05


class BoundedListing:
    """A listing that takes a twentieth of the time at most; between two of them the last one is given again."""

    def __init__(self, list_all: Callable[[], Collection[int]]) -> None:
        self._list_all = list_all
        self._last: Collection[int] = ()
        self._again_at = 0.0

    def look(self, now: bool = False) -> Collection[int]:
        """What there is, or was at the last listing; `now` lists anyhow."""
        started = time.monotonic()
        if now or started >= self._again_at:
            self._last = self._list_all()
            ended = time.monotonic()
            self._again_at = ended + (ended - started) * (1 / _SHARE - 1)
        return self._last
