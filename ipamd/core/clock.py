"""The time, as an argument."""

from msgspec import Struct

SECOND = 1_000_000_000
"""In nanoseconds."""

THIS_BOOT = 1
"""The first moment of a boot (CLOCK_BOOTTIME, ns), for what began in this one at an unknown time; 0 is before it."""


class Now(Struct, frozen=True):
    """One reading of two clocks, in nanoseconds.

    ``unix`` is for what others read (timestamps, sequence numbers) and may jump; ``boot`` (CLOCK_BOOTTIME) is what
    durations and orders are measured by and never does.
    """

    unix: int
    boot: int
