"""From a daemon's start until it can serve, what it occupies then, and what it takes of a core when nobody asks.

On etcd with so many addresses in the state file; each start is made with etcd there and with etcd away. The daemon is
ended with SIGTERM before, so that its state is what a restart finds.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.contenders import POOL
from tests.bench.figures import AWAY, Start, spread
from tests.bench.programs import run_program
from tests.daemon_process import Daemon, network, wait_for
from tests.etcd_process import EtcdProcess

SIZES = (0, 1000, 4096)
CONFIG = "/calico/ipam/v2/config"
SETTLING = 1.5
"""Seconds after which a daemon with nothing to do has done what comes after its start."""


def measure(directory: Path, programs: Path, sizes: Sequence[int], repeats: int, idle: float) -> list[Start]:
    """Start a daemon of each size ``repeats`` times on etcd and without it; ``idle``: seconds to watch it at rest."""
    config = directory / "starts.json"
    config.write_text(json.dumps(network()))
    with EtcdProcess(directory / "starts-etcd") as etcd:
        # 4,096 addresses take more than the 20 blocks that a node may have by default.
        settings = {"strict_affinity": False, "auto_allocate_blocks": True, "maxBlocksPerHost": 200}
        etcd.put(CONFIG, json.dumps(settings).encode())
        flags = [*POOL, "--etcd-endpoints", etcd.endpoint]
        daemons = {size: Daemon(directory / f"starts-{size}", f"bench-{size}", *flags) for size in sizes}
        for size, daemon in daemons.items():
            with daemon:
                if size:
                    run_program(programs / "load", str(daemon.socket), "32", "ADD", "c", str(size), str(config))
                _quiet(daemon)
                daemon.stop()
        here = list(_starts("etcd", daemons, repeats, idle))
        etcd.kill()
        return here + list(_starts(AWAY, daemons, repeats, 0))


def _starts(store: str, daemons: dict[int, Daemon], repeats: int, idle: float) -> Iterator[Start]:
    """The starts of all sizes by turns, after one to get warm; the last one's memory counts."""
    took: dict[int, list[int]] = {size: [] for size in daemons}
    resident: dict[int, int] = {}
    processor: dict[int, float | None] = dict.fromkeys(daemons)
    for number in range(1 + repeats):
        for size, daemon in daemons.items():
            with _started(daemon) as nanoseconds:
                if number:
                    took[size].append(nanoseconds)
                if number == repeats:
                    if store != AWAY:
                        _quiet(daemon)
                    time.sleep(SETTLING)
                    resident[size] = _resident(daemon.pid)
                    processor[size] = _share(daemon.pid, idle) if idle else None
    for size, series in took.items():
        yield Start(store, size, spread(series), resident[size], processor[size])


@contextmanager
def _started(daemon: Daemon) -> Iterator[int]:
    """A daemon that was just started, and how long it took (ns); ended as systemd ends it."""
    began = time.perf_counter_ns()
    daemon.start(ready=False)
    try:
        deadline = time.monotonic() + 15
        while not daemon.get("/readyz", quiet=True).get("ready"):
            if not daemon.lives or time.monotonic() > deadline:
                raise RuntimeError(f"cannot start the daemon: {daemon.log.read_text()[-2000:]}")
            time.sleep(0.001)
        yield time.perf_counter_ns() - began
        daemon.stop()
    finally:
        daemon.kill()


def _quiet(daemon: Daemon) -> None:
    """Wait until the daemon has looked at its store and has nothing to write."""
    wait_for(
        lambda: daemon.get("/v1/status")["store"]["synced"] and not daemon.metric("ipamd_unflushed_facts"),
        60.0,
        lambda: daemon.log.read_text()[-2000:],
    )


def _resident(pid: int) -> int:
    """Bytes in memory."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) * 1024


def _share(pid: int, seconds: float) -> float:
    """The share of a core that all threads of a process take, by the kernel's clock of the process."""
    clock = (~pid << 3) | 2  # MAKE_PROCESS_CPUCLOCK of linux/posix-timers.h: to the nanosecond, unlike /proc/PID/stat
    before, began = time.clock_gettime_ns(clock), time.perf_counter_ns()
    time.sleep(seconds)
    return (time.clock_gettime_ns(clock) - before) / (time.perf_counter_ns() - began)
