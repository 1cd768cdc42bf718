"""Whole processes: what a container runtime waits for when it calls a plugin.

All lanes take turns in one run on the same machine, in every order of each other, so that none has the quieter
minutes or the warmer caches. Each ADD is followed by its DEL before the next round: host-local works on a directory
that is empty but for the files it keeps, which is where it is fastest, and that is on the file system of the daemon's
state file.
"""

import itertools
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct

from tests.bench.figures import Comparison, Processes, spread
from tests.bench.programs import run_program
from tests.daemon_process import PLUGIN, Daemon, network, wait_for
from tests.etcd_process import EtcdProcess

AT_ONCE = 100
"""ADDs of a burst: more pods than a node starts at once after a reboot."""

A_FEW = 10
"""ADDs of a burst that only shows that bursts are measured."""

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


def measure(
    directory: Path, programs: Path, store: str, rounds: int, bursts: int, at_once: int = AT_ONCE
) -> Comparison:
    """Run every lane ``rounds`` times by turns, then in ``bursts`` bursts; warmed with a tenth of it."""
    warm = max(3, rounds // 10)
    directory.mkdir(parents=True)
    with _lanes(directory, programs, store) as lanes:
        plan = [
            *_introduction(directory, lanes),
            *_turns(len(lanes), warm + rounds),
            *_bursts(len(lanes), 1 + bursts, at_once),
        ]
        printed = run_program(programs / "spawner", told="".join(f"{line}\n" for line in plan))
    steps = [tuple(line.split()[:3]) for line in plan if line.startswith(("run", "burst"))]
    series: dict[tuple[str, ...], list[int]] = {}
    for step, nanoseconds in zip(steps, printed, strict=True):
        series.setdefault(step, []).append(int(nanoseconds))
    return Comparison(
        store,
        *(
            Processes(
                spread(series["run", str(lane), "ADD"][warm:]),
                spread(series["run", str(lane), "DEL"][warm:]),
                spread(series["burst", str(lane), "ADD"][1:]),
            )
            for lane in range(len(lanes))
        ),
    )


@contextmanager
def _lanes(directory: Path, programs: Path, store: str) -> Iterator[list[Lane]]:
    """What is compared, in the order of ``Comparison``, running, with its files below ``directory``.

    One daemon at a time, as on a node: a second one would have its share of the caches and of the cores.
    """
    reference = host_local()
    if reference is None:
        raise RuntimeError("cannot compare with host-local: it is not installed; install containernetworking-plugins")
    with ExitStack() as stack:
        flags = list(POOL)
        if store == "etcd":
            flags += ["--etcd-endpoints", stack.enter_context(EtcdProcess(directory / "etcd")).endpoint]
        daemon = stack.enter_context(Daemon(directory / "daemon", "bench", *flags))
        floor = directory / "echo.sock"
        server = stack.enter_context(subprocess.Popen([programs / "echo", floor]))
        stack.callback(server.kill)
        wait_for(floor.exists)
        ranges = network(
            kind="host-local", ranges=[[{"subnet": "10.128.0.0/16"}]], dataDir=str(directory / "host-local")
        )
        yield [_plugin(daemon.socket), _plugin(floor), Lane(reference, "host-local", ranges, {})]


def _plugin(socket: Path) -> Lane:
    return Lane(PLUGIN, "calico-ipam", network(), {"IPAMD_SOCKET": str(socket)})


def _introduction(directory: Path, lanes: Sequence[Lane]) -> Iterator[str]:
    """The lines by which the spawner learns of the lanes."""
    for number, lane in enumerate(lanes):
        config = directory / f"lane-{number}.json"
        config.write_text(json.dumps(lane.config))
        yield f"lane {lane.program} {lane.name} {config}"
        environment = {
            "CNI_NETNS": "/var/run/netns/bench", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=bench", **lane.environment,
        }  # fmt: skip
        yield from (f"env {key}={value}" for key, value in environment.items())


def _turns(lanes: int, rounds: int) -> Iterator[str]:
    """Every round all lanes in the next of their orders: first their ADDs, then the DELs of these."""
    orders = itertools.cycle(itertools.permutations(range(lanes)))
    for number, order in zip(range(rounds), orders, strict=False):
        for verb in ("ADD", "DEL"):
            yield from (f"run {lane} {verb} {number:064x}" for lane in order)


def _bursts(lanes: int, repeats: int, at_once: int) -> Iterator[str]:
    for number in range(repeats):
        for lane in range(lanes):
            yield from (f"burst {lane} {verb} {number:060x} {at_once}" for verb in ("ADD", "DEL"))
