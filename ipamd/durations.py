"""A histogram of durations, filled by many at once: how many by bucket, and their sum."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

BUCKETS = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0,
)  # fmt: skip
"""Seconds: from a request answered from memory (tens of microseconds) to one that waited for a block."""

_bucket = partial(bisect_left, [round(seconds * 1e9) for seconds in BUCKETS])


class Durations:
    """One histogram.

    prometheus_client's own, and its counters, are for threads: those of one request would be a tenth of an ADD.
    """

    __slots__ = ("_counts", "_total")

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._total = 0

    def add(self, durations: Sequence[int], absent: int = 0) -> None:
        """Count durations (ns), of which so many are zeros that stand for nothing."""
        for bucket, count in Counter(map(_bucket, durations)).items():
            self._counts[bucket] += count
        self._counts[0] -= absent
        self._total += sum(durations)

    @property
    def seconds(self) -> float:
        """The sum of all."""
        return self._total / 1e9

    def cumulative(self) -> list[int]:
        """How many took no longer than each of ``BUCKETS``, and how many there are."""
        return list(accumulate(self._counts))
