"""kill -9 of daemons under load, again and again: what was acknowledged holds, and nothing else does.

Two nodes of one cluster: no address may be told on both either, and their kills share the machine's cores.
"""

import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from itertools import pairwise

import pytest

from tests import killed_at
from tests.calico_state import agreed
from tests.daemon_process import POOLS, Daemon, wait_for
from tests.etcd_process import EtcdProcess
from tests.killed_at import MOMENTS
from tests.nodes import pool_record
from tests.real.conftest import Start
from tests.real.pods import Addresses, Load

pytestmark = pytest.mark.real

KILLS = int(os.environ.get("IPAMD_TEST_KILLS", "100" if os.environ.get("CI") else "20"))
"""On both nodes together, an even number; ``make soak-kill`` asks for 1,000."""
NODES = ("node-a", "node-b")
CHECKPOINTED = 30
"""Kills of a node after which so much was appended to its state file that it must have been checkpointed."""
START, LIFE = 0.5, 0.15
"""Seconds within which a daemon is killed at random: while it starts, and while it serves."""


class Killer:
    """Kills and starts one node's daemon; after each start all that was acknowledged must be there."""

    def __init__(self, daemon: Daemon, load: Load, seed: int) -> None:
        self.daemon, self.load = daemon, load
        self.kills: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.starts: list[float] = []
        """Seconds from the start of the process until an ADD could be served."""
        self.sizes = [0]
        self.over = False
        """Whether there is nothing to be killed any more: the other killer failed, or somebody ended the test."""
        self._spool = daemon.directory / "state" / "del.d"
        self._choose = random.Random(seed)  # noqa: S311 - repeatable moments

    def run(self, kills: int) -> None:
        """So many kills, half of them at moments that chance picks, the others where it hurts most."""
        for number in range(kills):
            if self.over:
                return
            if number % 2:
                self.daemon.signal(signal.SIGUSR1)  # the daemon was started with a trap, which the load walks into
                self.daemon.wait_end()
                self.kills[self._moment(number)] += 1
            else:
                self._at_random(starting=number % 8 == 0)
            self._restart(self._moment(number + 1))
            with self.load.at_rest():
                self._check()

    def _at_random(self, *, starting: bool) -> None:
        if starting:
            self.daemon.kill()
            self.daemon.start(ready=False)
        time.sleep(self._choose.uniform(0, START if starting else LIFE))
        self.daemon.kill()
        self.kills["while it started" if starting else "at any moment"] += 1

    @staticmethod
    def _moment(number: int) -> str:
        return MOMENTS[number // 2 % len(MOMENTS)]

    def _restart(self, moment: str) -> None:
        self.seen["DELs kept"] += sum(1 for _ in self._spool.iterdir())
        count = self._choose.randint(1, 4 if moment in (killed_at.SENT, killed_at.ANSWERED) else 40)
        trap = (moment, str(count), str(self._choose.randrange(1000)))
        self.daemon.wrapper = (sys.executable, "-P", killed_at.__file__, *trap)
        began = time.monotonic()
        self.daemon.start()
        self.starts.append(time.monotonic() - began)

    def _check(self) -> None:
        """No client is in the middle of a call: the daemon holds what was acknowledged, and gives it again."""
        wait_for(lambda: not list(self._spool.iterdir()))
        views = self.daemon.get("/v1/allocations")
        status = self.daemon.get("/v1/status")
        self.sizes.append(status["state_file"]["bytes"])
        self.seen["restarts before a flush"] += any(not view["flushed"] for view in views)
        held = [(container, address) for container, told in self.load.held.items() for address in told]
        assert sorted((view["container"], view["address"]) for view in views) == sorted(held)
        for client in self.load.clients:
            for container in list(client.held):
                client.repeat(container)
        assert not status["store"]["damaged_records"]
        assert not self.load.failed()


def test_nothing_acknowledged_is_lost_given_twice_or_leaked_however_often_the_daemon_is_killed(
    etcd: EtcdProcess, start: Start
) -> None:
    """After each kill -9 under load all acknowledged addresses are held as before, and at the end none is left over."""
    began = time.monotonic()
    daemons = [start(node, *POOLS) for node in NODES]
    etcd.put(*pool_record("named", "10.99.0.0/16", assignmentMode="Manual"))
    addresses = Addresses()
    with ExitStack() as stack:
        named = [[f"10.99.{node}.{number}" for number in range(256)] for node in range(len(NODES))]
        loads = [
            stack.enter_context(Load(daemon, addresses, free)) for daemon, free in zip(daemons, named, strict=True)
        ]
        killers = [Killer(daemon, load, seed) for seed, (daemon, load) in enumerate(zip(daemons, loads, strict=True))]
        with ThreadPoolExecutor(len(killers)) as pool:
            runs = [pool.submit(killer.run, KILLS // len(killers)) for killer in killers]
            try:
                wait(runs, return_when=FIRST_EXCEPTION)
            finally:
                for killer in killers:
                    killer.over = True
        for run in runs:
            run.result()
    for load in loads:
        for client in load.clients:
            for container in list(client.held):
                client.delete(container)
    state = agreed(etcd, *daemons, within=30)
    assert not state.pods()
    assert not state.pod_handles()
    assert [daemon.get("/v1/allocations") for daemon in daemons] == [[], []]
    assert {cidr for _node, cidr in state.affinities} == set(state.blocks)
    report(killers, addresses, time.monotonic() - began)


def report(killers: list[Killer], addresses: Addresses, seconds: float) -> None:
    """Print what was done, and make sure that it was worth it."""
    kills = sum((killer.kills for killer in killers), Counter[str]())
    seen = sum((killer.seen for killer in killers), Counter[str]()) + addresses.done
    starts = sorted(seconds for killer in killers for seconds in killer.starts)
    sys.stdout.write(
        f"\nkills {kills.total()} ({', '.join(f'{what} {count}' for what, count in kills.items())}), "
        f"lost 0, double 0, leaked 0; {', '.join(f'{what} {count}' for what, count in sorted(seen.items()))}; "
        f"start p50 {statistics.median(starts):.2f} s, longest {starts[-1]:.2f} s; {seconds:.0f} s\n"
    )
    assert kills.total() == KILLS
    assert {*MOMENTS} <= kills.keys() or 2 * len(NODES) * len(MOMENTS) > KILLS
    assert all(seen[what] for what in ("calls cut", "DELs kept", "requested", "repeated", "restarts before a flush"))
    for killer in killers:
        checkpoint = any(after < before for before, after in pairwise(killer.sizes))
        assert checkpoint or killer.kills.total() < CHECKPOINTED, "no checkpoint was made"
