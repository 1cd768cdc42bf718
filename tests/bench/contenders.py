"""Who is compared: each plugin with its configuration, and what has to run behind it.

One daemon at a time, as on a node: a second one would have its share of the caches and of the cores. Calico's two
act on the daemon's own etcd as another node of the same cluster, and only there.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct

from tests.bench.figures import CALICO, FLOOR, MODEL, OWN, REFERENCE, TRIO
from tests.daemon_process import PLUGIN, Daemon, network, wait_for
from tests.etcd_process import EtcdProcess

POOL = ("--default-pools-ipv4-cidr", "10.64.0.0/12")
SLOW = 5
"""A slow contender runs in each so many-th round: the others need the time more."""

NODES = "/calico/resources/v3/projectcalico.org/nodes/"
CLUSTER = "/calico/resources/v3/projectcalico.org/clusterinformations/default"


class Lane(Struct, frozen=True):
    """A plugin to run: the file, the name it is called by, its configuration, and what it finds in its environment.

    It runs in each ``every``-th round; ``most`` of it at once at most.
    """

    contender: str
    program: Path
    name: str
    config: Mapping[str, object]
    environment: Mapping[str, str]
    every: int = 1
    most: int = 1000


class Field(Struct, frozen=True):
    """All who take part beside one daemon, running."""

    daemon: Daemon
    lanes: list[Lane]


def host_local() -> Path | None:
    """The reference plugin where distributions put it; None if it is not installed."""
    places = (Path("/usr/lib/cni/host-local"), Path("/opt/cni/bin/host-local"))
    return next((place for place in places if place.is_file()), None)


def plugin(contender: str, path: Path, every: int = 1, most: int = 1000) -> Lane:
    """Our plugin against whoever listens at ``path``."""
    return Lane(contender, PLUGIN, "calico-ipam", network(), {"IPAMD_SOCKET": str(path)}, every, most)


@contextmanager
def running(directory: Path, programs: Path, store: str) -> Iterator[Field]:
    """The contenders, with a daemon on a store, and their files below ``directory``."""
    reference = host_local()
    if reference is None:
        raise RuntimeError("cannot compare with host-local: it is not installed; install containernetworking-plugins")
    directory.mkdir(parents=True)
    with ExitStack() as stack:
        flags = list(POOL)
        if store == "etcd":
            etcd = stack.enter_context(EtcdProcess(directory / "etcd"))
            flags += ["--etcd-endpoints", etcd.endpoint]
        daemon = stack.enter_context(Daemon(directory / "daemon", "bench", *flags))
        floor = _server(stack, directory / "echo.sock", str(programs / "echo"), str(directory / "echo.sock"))
        ranges = network(
            kind="host-local", ranges=[[{"subnet": "10.128.0.0/16"}]], dataDir=str(directory / "host-local")
        )
        trio_echo = _server(stack, directory / "trio.sock", *_module("trio_echo", directory / "trio.sock"))
        lanes = [
            plugin(OWN, daemon.socket),
            plugin(FLOOR, floor),
            plugin(TRIO, trio_echo),
            Lane(REFERENCE, reference, REFERENCE, ranges, {}),
        ]
        if store == "etcd":
            lanes += _calico(stack, directory, etcd)
        yield Field(daemon, lanes)


def _calico(stack: ExitStack, directory: Path, etcd: EtcdProcess) -> Iterator[Lane]:
    """The model of Calico's plugin, and the real one if CALICO_IPAM names it."""
    etcd.put(CLUSTER, _resource("ClusterInformation", "default", {"datastoreReady": True}))
    for node in ("bench-model", "bench-calico"):
        etcd.put(NODES + node, _resource("Node", node, {}))
    path = directory / "model.sock"
    _server(stack, path, *_module("calico_plugin", path), etcd.endpoint, "bench-model")
    yield plugin(MODEL, path, SLOW, 100)
    if real := os.environ.get("CALICO_IPAM"):
        config = network() | {
            "datastore_type": "etcdv3", "etcd_endpoints": etcd.endpoint, "nodename": "bench-calico", "log_level": "error",
        }  # fmt: skip
        yield Lane(CALICO, Path(real), CALICO, config, {}, SLOW, 100)


def _module(name: str, path: Path) -> Sequence[str]:
    """The command of a server in Python."""
    return [sys.executable, "-m", f"tests.bench.{name}", str(path)]


def _server(stack: ExitStack, path: Path, *command: str) -> Path:
    """A process that listens at ``path``."""
    server = stack.enter_context(subprocess.Popen(command))
    stack.callback(server.kill)
    wait_for(path.exists)
    return path


def _resource(kind: str, name: str, spec: Mapping[str, object]) -> bytes:
    """A resource as Calico stores it."""
    head = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": {"name": name, "uid": f"uid-of-{name}"}}
    return json.dumps({**head, "spec": spec}).encode()
