"""The time, as an argument."""

from msgspec import Struct


class Now(Struct, frozen=True):
    """One reading of two clocks, in nanoseconds.

    ``unix`` is for what others read (timestamps, sequence numbers) and may jump; ``boot`` (CLOCK_BOOTTIME) is what
    durations and orders are measured by and never does.
    """

    unix: int
    boot: int
