"""How many tokens a batch a GPU computes fastest: tried on the batches that are to be scored anyway, while they are scored.

A size other than the first costs the compiling of its shape and little else, for the scores of its batches count. It is tried
once the costs of all trials are at most 2 % of the seconds computed so far, the next larger size first, the next smaller one where that was slower, on in
that direction while it pays. Sizes change the last bits of scores only.
"""

from __future__ import annotations

from statistics import median

SIZES = (16384, 32768, 65536, 131072)
_MOST_SHARE = 0.02
# Full batches that a size is judged by, after a first one that may compile.
_BATCHES = 3
# Less faster than this is noise.
_MARGIN = 1.01
# A shard ends with a batch that is not full, and computed as if it were: half a batch, in the mean, of at least so many.
_BATCHES_IN_SHARD = 32
_FULL = 0.9


class BatchSizeSearch:
    """Told of each batch, it says how many tokens the next is to have. It has no clock of its own."""

    def __init__(self, first_size: int) -> None:
        self.best = first_size
        self._tried = first_size
        self._first_seconds: dict[int, float] = {}
        self._seconds_a_token: dict[int, list[float]] = {}
        self._too_large: int | None = None
        self._computed_seconds = 0.0

    def add(self, size: int, num_tokens: int, seconds: float) -> None:
        """A batch that was made for `size` tokens and held `num_tokens` was computed in so many seconds."""
        if size not in self._first_seconds:
            self._first_seconds[size] = seconds
            return
        self._computed_seconds += seconds
        if num_tokens >= _FULL * size:
            self._seconds_a_token.setdefault(size, []).append(seconds / num_tokens)

    def choose(self, num_left: int) -> int:
        """The size of the next batch, where `num_left` tokens of the shard are left."""
        if self._tried != self.best:
            if not self._is_known(self._tried):
                return self._tried if num_left >= self._tried else self.best
            if self._rate(self._tried) > _MARGIN * self._rate(self.best):
                self.best = self._tried
            self._tried = self.best
        size = self._next_size()
        if size is not None and self._is_known(self.best) and num_left >= _BATCHES_IN_SHARD * size and self._is_affordable():
            self._tried = size
        return self._tried

    def leave_out(self, size: int) -> None:
        """A batch of `size` tokens does not fit in memory: neither it nor a larger one is tried again."""
        self._too_large = size
        self._tried = self.best

    def describe(self) -> str:
        """`16,384: 152,000 tokens/s; 32,768: 149,000 tokens/s`, of the sizes that are known."""
        known = [f"{size:,}: {self._rate(size):,.0f} tokens/s" for size in sorted(self._seconds_a_token) if self._is_known(size)]
        return "; ".join(known + ([] if self._too_large is None else [f"{self._too_large:,}: out of memory"]))

    def _is_known(self, size: int) -> bool:
        return len(self._seconds_a_token.get(size, ())) >= _BATCHES

    def _rate(self, size: int) -> float:
        """Tokens a second in the last full batches: those before them may have held longer sequences."""
        return 1 / median(self._seconds_a_token[size][-_BATCHES:])

    def _next_size(self) -> int | None:
        largest = SIZES[-1] if self._too_large is None else self._too_large - 1
        larger = next((size for size in SIZES if self.best < size <= largest), None)
        smaller = next((size for size in reversed(SIZES) if size < self.best), None)
        return next((size for size in (larger, smaller) if size is not None and not self._is_known(size)), None)

    def _is_affordable(self) -> bool:
        """Whether all trials, another one that costs what the dearest did included, cost little of what was computed so far."""
        costs = list(self._first_seconds.values())  # the first is that of starting, which is paid anyway
        return sum(costs[1:]) + max(costs) <= _MOST_SHARE * self._computed_seconds
