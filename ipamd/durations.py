"""A histogram of durations, filled by many at once: how many by bucket, their sum, and an example of each bucket."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

BUCKETS = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0,
)  # fmt: skip
"""Seconds: from a request answered from memory (tens of microseconds) to one that waited for a block."""

_bucket = partial(bisect_left, [round(seconds * 1e9) for seconds in BUCKETS])

LABEL = "container"
_LONGEST = 128 - len(LABEL)
"""Characters of a container's id that an example has room for in OpenMetrics: 128 with the label's own name."""


class Example(NamedTuple):
    """A request of a bucket: its container, how long it took (ns), and when it was counted (Unix time)."""

    container: str
    duration: int
    at: float


class Durations:
    """One histogram. ``examples``: the last request of each bucket, where the container's id is not too long.

    prometheus_client's own, and its counters, are for threads: those of one request would be a tenth of an ADD.
    """

    __slots__ = ("_counts", "_total", "examples")

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._total = 0
        self.examples: dict[int, Example] = {}

    def add(self, durations: Sequence[int], absent: int = 0) -> list[int]:
        """Count durations (ns), of which so many are zeros that stand for nothing. Returns the bucket of each."""
        buckets = list(map(_bucket, durations))
        for bucket, count in Counter(buckets).items():
            self._counts[bucket] += count
        self._counts[0] -= absent
        self._total += sum(durations)
        return buckets

    def add_named(self, durations: Sequence[int], containers: Iterable[str], now: float) -> None:
        """Count durations, and let the last one of each bucket be its example; "" is the container of none."""
        buckets = self.add(durations)
        last = dict(zip(buckets, zip(containers, durations, strict=True), strict=True))
        for bucket, (container, duration) in last.items():
            if 0 < len(container) <= _LONGEST:
                self.examples[bucket] = Example(container, duration, now)

    @property
    def seconds(self) -> float:
        """The sum of all."""
        return self._total / 1e9

    def cumulative(self) -> list[int]:
        """How many took no longer than each of ``BUCKETS``, and how many there are."""
        return list(accumulate(self._counts))
