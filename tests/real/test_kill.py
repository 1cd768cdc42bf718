"""kill -9 of the daemon under load, again and again: what was acknowledged holds, and nothing else does."""

import http.client
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import pytest

from tests.calico_state import agreed
from tests.daemon_process import POOLS, Daemon, addresses_of, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real

KILLS = int(os.environ.get("IPAMD_TEST_KILLS", "50" if os.environ.get("CI") else "15"))
CLIENTS = 6
CHECKPOINTED = 12
"""Kills after which so much was appended to the state file that it must have been checkpointed."""
HELD = 12
"""Containers that a client keeps, about."""


class Load:
    """Clients that add and delete without end until ``stop`` is set, and what they were told.

    ``held`` is what is acknowledged and not being deleted. A request without an answer is repeated until there is
    one, as a runtime does; so when no client is in the middle of one, ``held`` is all that exists.
    """

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.stop = threading.Event()
        self.held: dict[str, str] = {}
        """Container to address."""
        self.answers = 0
        self.cut = 0
        """Requests that the daemon's death left without an answer."""
        self._holders: dict[str, str] = {}
        self._lock = threading.Lock()
        self._turns = [threading.Lock() for _ in range(CLIENTS)]

    def run(self, number: int) -> None:
        """One client."""
        choose = random.Random(number)  # noqa: S311 - a repeatable load
        mine: list[str] = []
        count = 0
        while not self.stop.is_set():
            with self._turns[number]:
                if choose.random() * 2 * HELD > len(mine):
                    count += 1
                    mine.append(f"c{number}-{count}")
                    self._add(mine[-1])
                else:
                    self._delete(mine.pop(choose.randrange(len(mine))))

    def _add(self, container: str) -> None:
        address = self.ask("ADD", container)[0]
        with self._lock:
            other = self._holders.setdefault(address, container)
            assert other == container, f"{address} was given to {container} and is {other}'s"
            self.held[container] = address

    def _delete(self, container: str) -> None:
        with self._lock:
            del self._holders[self.held.pop(container)]  # from now on it may be another's
        self.ask("DEL", container)

    def ask(self, command: str, container: str) -> list[str]:
        """Ask until there is an answer, which must be yes; the addresses of an ADD."""
        while True:
            try:
                status, body = self.daemon.post(command, container)
            except (OSError, http.client.HTTPException) as error:
                self.cut += not isinstance(error, ConnectionRefusedError | FileNotFoundError)
                time.sleep(0.01)
                if self.stop.is_set():
                    raise
                continue
            assert status == 200, body
            self.answers += 1
            return addresses_of(body) if command == "ADD" else []

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """No client is in the middle of a request."""
        with ExitStack() as stack:
            for turn in self._turns:
                stack.enter_context(turn)
            yield


@contextmanager
def load(daemon: Daemon) -> Iterator[Load]:
    """Clients at work; a client's failure is the test's."""
    running = Load(daemon)
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients: list[Future[None]] = [pool.submit(running.run, number) for number in range(CLIENTS)]
        try:
            yield running
        finally:
            running.stop.set()
            for client in clients:
                client.result()


def test_nothing_acknowledged_is_lost_given_twice_or_leaked_however_often_the_daemon_is_killed(
    etcd: EtcdProcess, start: Start
) -> None:
    """After each kill -9 under load all acknowledged addresses are held as before, and at the end none is left over."""
    daemon = start("node-a", *POOLS)
    choose = random.Random(0)  # noqa: S311 - repeatable moments
    unflushed, sizes = 0, [0]
    with load(daemon) as clients:
        for _ in range(KILLS):
            after = clients.answers + choose.randrange(20, 400)
            wait_for(lambda after=after: clients.answers >= after)
            daemon.kill()
            daemon.start()
            with clients.at_rest():
                views = daemon.get("/v1/allocations")
                sizes.append(daemon.get("/v1/status")["state_file"]["bytes"])
                unflushed += any(not view["flushed"] for view in views)
                assert sorted((view["container"], view["address"]) for view in views) == sorted(clients.held.items())
                for container, address in clients.held.items():
                    assert clients.ask("ADD", container) == [address]
                assert not daemon.get("/v1/status")["store"]["damaged_records"]
        held = clients.held
    assert clients.cut, "no kill ever met a request under way"
    assert unflushed, "no kill ever met facts that etcd did not have"
    assert KILLS < CHECKPOINTED or any(after < before for before, after in pairwise(sizes)), "no checkpoint was made"
    for container in held:
        clients.ask("DEL", container)
    state = agreed(etcd, daemon)
    assert not state.pods()
    assert not state.pod_handles()
    assert daemon.get("/v1/allocations") == []
    assert set(state.affinities) == {("node-a", cidr) for cidr in state.blocks}
