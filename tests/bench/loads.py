"""Requests at the socket: how much of a core the daemon needs for one, without the plugin's process.

The daemon is pinned to one core, with all its threads; the client, and etcd, to another. It journals each request
and flushes to its store all the while, with its defaults but for the size of the reserve: it must hold a burst, for
what is measured is the daemon and not the wait for addresses.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.contenders import POOL
from tests.bench.figures import STORES, Load, spread
from tests.bench.programs import pinned, run_program
from tests.daemon_process import Daemon, network, wait_for
from tests.etcd_process import EtcdProcess

BURST = 1000
"""ADDs in a row: what fits in the blocks that a node may have (20 of 64 addresses), some of them kept spare."""

CONNECTIONS = (1, 8, 32, 256)


def measure(directory: Path, programs: Path, connections: Sequence[int], bursts: int, pairs: int) -> list[Load]:
    """Measure on each store at each number of connections: ``bursts`` of BURST requests, then ``pairs`` in turn."""
    config = directory / "load.json"
    config.write_text(json.dumps(network()))
    loads = []
    for store in STORES:
        with _daemon(directory / store, store) as daemon:
            client = _Client(daemon, programs / "load", config)
            client.warm(min(pairs, BURST))
            loads += [client.measure(store, number, bursts, pairs) for number in connections]
    return loads


def cores() -> tuple[int, int]:
    """The server's core and the client's; the same one if there is no other."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


@contextmanager
def _daemon(directory: Path, store: str) -> Iterator[Daemon]:
    server, client = cores()
    flags = [*POOL, "--reserve-min", str(BURST), "--reserve-max", str(BURST)]
    with ExitStack() as stack:
        if store == "etcd":
            with pinned(client):
                etcd = stack.enter_context(EtcdProcess(directory / "etcd"))
            flags += ["--etcd-endpoints", etcd.endpoint]
        with pinned(server):
            daemon = stack.enter_context(Daemon(directory, "bench", *flags))
        yield daemon


class _Client:
    """Asks one daemon, and waits between two bursts until its reserve is full again."""

    def __init__(self, daemon: Daemon, program: Path, config: Path) -> None:
        self._daemon, self._program, self._config = daemon, program, config
        self._calls = 0

    def warm(self, pairs: int) -> None:
        """Let the daemon claim its blocks and run each path a few times."""
        self._ask(8, "ADD,DEL", pairs)

    def measure(self, store: str, connections: int, bursts: int, pairs: int) -> Load:
        """The rates and times at a number of connections."""
        elapsed = {"ADD": 0, "DEL": 0}
        times: dict[str, list[int]] = {"ADD": [], "DEL": []}
        for _ in range(bursts):
            self._calls += 1
            for verb in ("ADD", "DEL"):
                took, each = self._ask(connections, verb, BURST)
                elapsed[verb] += took
                times[verb] += each
        self._calls += 1
        took, _each = self._ask(connections, "ADD,DEL", pairs)
        rates = {verb: bursts * BURST * 1e9 / elapsed[verb] for verb in elapsed}
        mixed = 2 * pairs * 1e9 / took
        return Load(store, connections, rates["ADD"], rates["DEL"], mixed, spread(times["ADD"]), spread(times["DEL"]))

    def _ask(self, connections: int, verbs: str, count: int) -> tuple[int, list[int]]:
        """One call of the client, when nothing is left to flush; its nanoseconds, and those of each request."""
        daemon = self._daemon
        adds = verbs != "DEL"
        wait_for(lambda: self._settled(full=adds), 60.0, lambda: daemon.log.read_text()[-2000:])
        with pinned(cores()[1]):
            told = run_program(
                self._program, str(daemon.socket), str(connections), verbs, f"{self._calls:060x}", str(count),
                str(self._config),
            )  # fmt: skip
        return int(told[0]), [int(line.split()[1]) for line in told[1:]]

    def _settled(self, *, full: bool) -> bool:
        daemon = self._daemon
        if daemon.metric("ipamd_unflushed_facts"):
            return False
        return not full or daemon.metric("ipamd_reserve_addresses") >= BURST
