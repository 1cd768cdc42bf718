"""The simulation's time: as with Trio's ``MockClock`` it jumps to what comes next when all wait, at half the cost."""

from collections.abc import Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from math import inf
from unittest.mock import patch

import trio
import trio.lowlevel


class Clock(trio.abc.Clock):
    """A clock for one run of Trio, and the sleepers who wait for it."""

    def __init__(self) -> None:
        self._time = 0.0
        self._sleepers: list[tuple[float, int, list[trio.lowlevel.Task]]] = []
        self._slept = 0

    def start_clock(self) -> None:
        """Nothing has to be started."""

    def current_time(self) -> float:
        """The simulation's time (s)."""
        return self._time

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Trio asks when it has nothing to do: go on to its deadline, or to who is to wake before."""
        sleepers = self._sleepers
        while sleepers and not sleepers[0][2]:
            heappop(sleepers)  # cancelled
        until = min(deadline, sleepers[0][0]) if sleepers else deadline
        if until == inf:
            return inf  # only what ends the run is left
        self._time = max(self._time, until)
        while sleepers and sleepers[0][0] <= self._time:
            for task in heappop(sleepers)[2]:
                trio.lowlevel.reschedule(task)
        return 0.0

    async def _sleep(self, seconds: float) -> None:
        """``trio.sleep`` without a cancel scope, an exception and its traceback for each."""
        if seconds <= 0:
            await trio.lowlevel.checkpoint()
            return
        task = [trio.lowlevel.current_task()]
        self._slept += 1
        heappush(self._sleepers, (self._time + seconds, self._slept, task))

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            task.clear()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    @contextmanager
    def instead_of_trios(self) -> Iterator[None]:
        """Within it who calls ``trio.sleep`` sleeps by this clock."""
        with patch.object(trio, "sleep", self._sleep):
            yield
