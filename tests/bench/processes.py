"""Whole processes: what a container runtime waits for when it calls a plugin.

All lanes take turns in one run on the same machine, in every order of each other, so that none has the quieter
minutes or the warmer caches. Each ADD is followed by its DEL before the next round: host-local works on a directory
that is empty but for the files it keeps, which is where it is fastest.
"""

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct

from tests.bench.figures import Processes, spread
from tests.bench.programs import run_program
from tests.daemon_process import PLUGIN, Daemon, network, wait_for
from tests.etcd_process import EtcdProcess

EMBEDDED, ETCD, ECHO, HOST_LOCAL = "ipamd, embedded store", "ipamd, etcd", "C echo server", "host-local"
LANES = (EMBEDDED, ETCD, ECHO, HOST_LOCAL)

AT_ONCE = 100
"""ADDs of a burst: more pods than a node starts at once after a reboot."""

POOL = ("--default-pools-ipv4-cidr", "10.64.0.0/12")


class Lane(Struct, frozen=True):
    """A plugin to run: the file, the name it is called by, its configuration, and what it finds in its environment."""

    program: Path
    name: str
    config: Mapping[str, object]
    environment: Mapping[str, str]


def host_local() -> Path | None:
    """The reference plugin where distributions put it; None if it is not installed."""
    places = (Path("/usr/lib/cni/host-local"), Path("/opt/cni/bin/host-local"))
    return next((place for place in places if place.is_file()), None)


@contextmanager
def lanes(directory: Path, programs: Path) -> Iterator[dict[str, Lane]]:
    """Everything that is compared, running, with its files below ``directory``."""
    reference = host_local()
    if reference is None:
        raise RuntimeError("cannot compare with host-local: it is not installed; install containernetworking-plugins")
    with ExitStack() as stack:
        data = stack.enter_context(_memory_directory())
        etcd = stack.enter_context(EtcdProcess(directory / "etcd"))
        embedded = stack.enter_context(Daemon(directory / "embedded", "node-a", *POOL))
        on_etcd = stack.enter_context(
            Daemon(directory / "on-etcd", "node-b", *POOL, "--etcd-endpoints", etcd.endpoint)
        )
        floor = directory / "echo.sock"
        server = stack.enter_context(subprocess.Popen([programs / "echo", floor]))
        stack.callback(server.kill)
        wait_for(floor.exists)
        ranges = network(kind="host-local", ranges=[[{"subnet": "10.128.0.0/16"}]], dataDir=str(data))
        yield {
            EMBEDDED: _plugin(embedded.socket),
            ETCD: _plugin(on_etcd.socket),
            ECHO: _plugin(floor),
            HOST_LOCAL: Lane(reference, "host-local", ranges, {}),
        }


@contextmanager
def _memory_directory() -> Iterator[Path]:
    """An empty directory in memory, where host-local is fastest: the distributions keep its files below /run."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - the name of the memory file system
    directory = Path(tempfile.mkdtemp(prefix="host-local-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _plugin(socket: Path) -> Lane:
    return Lane(PLUGIN, "calico-ipam", network(), {"IPAMD_SOCKET": str(socket)})


def measure(directory: Path, programs: Path, rounds: int, bursts: int) -> list[Processes]:
    """Run every lane ``rounds`` times by turns, then in ``bursts`` bursts; warmed with a tenth of it."""
    warm = max(3, rounds // 10)
    with lanes(directory, programs) as compared:
        head = _introduce(directory, compared)
        plan, labels = _turns(len(compared), warm + rounds)
        burst_plan, burst_labels = _bursts(len(compared), 1 + bursts)
        times = [int(line) for line in run_program(programs / "spawner", told=head + plan + burst_plan)]
    series: dict[tuple[int, str], list[int]] = {}
    for label, time in zip(labels + burst_labels, times, strict=True):
        series.setdefault(label, []).append(time)
    return [
        Processes(
            name,
            spread(series[number, "ADD"][warm:]),
            spread(series[number, "DEL"][warm:]),
            spread(series[number, "burst ADD"][1:]),
        )
        for number, name in enumerate(compared)
    ]


def _introduce(directory: Path, compared: Mapping[str, Lane]) -> str:
    """The lines by which the spawner learns of the lanes."""
    lines = []
    for number, lane in enumerate(compared.values()):
        config = directory / f"lane-{number}.json"
        config.write_text(json.dumps(lane.config))
        lines.append(f"lane {lane.program} {lane.name} {config}")
        environment = {
            "CNI_NETNS": "/var/run/netns/bench", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=bench", **lane.environment,
        }  # fmt: skip
        lines += [f"env {key}={value}" for key, value in environment.items()]
    return "".join(f"{line}\n" for line in lines)


def _turns(count: int, rounds: int) -> tuple[str, list[tuple[int, str]]]:
    """Every round all lanes in the next of their orders: first their ADDs, then the DELs of these."""
    lines, labels = [], []
    orders = itertools.cycle(itertools.permutations(range(count)))
    for number, order in zip(range(rounds), orders, strict=False):
        for verb in ("ADD", "DEL"):
            for lane in order:
                lines.append(f"run {lane} {verb} {number:064x}\n")
                labels.append((lane, verb))
    return "".join(lines), labels


def _bursts(count: int, repeats: int) -> tuple[str, list[tuple[int, str]]]:
    lines, labels = [], []
    for number in range(repeats):
        for lane in range(count):
            for verb in ("ADD", "DEL"):
                lines.append(f"burst {lane} {verb} {number:060x} {AT_ONCE}\n")
                labels.append((lane, f"burst {verb}"))
    return "".join(lines), labels
