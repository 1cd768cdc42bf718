"""A node with a container runtime of its own: a machine out of namespaces, etcd, a real daemon, a real containerd."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from ipamd.cni import build
from tests.calico_state import State, agreed
from tests.daemon_process import wait_for
from tests.e2e.runtime import Pod, Runtime, remove_cgroups
from tests.etcd_process import EtcdProcess
from tests.machine import PROGRAMS, Fabric, Machine, MachineDaemon, lacking, leave_network
from tests.real.conftest import missing

POOLS = ("--default-pools-ipv4-cidr", "192.168.0.0/17", "--default-pools-ipv6-cidr", "fd00:10:244::/64")
RUNTIME = {"containerd": "containerd", "runc": "runc", "busybox": "busybox-static"}
PTP = {
    "type": "ptp",
    "ipam": {
        "type": "ipamd", "assign_ipv4": "true", "assign_ipv6": "true",
        "gateway": ["192.168.255.254/16", "fe80::1"], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
}  # fmt: skip
"""The gateways lie outside of the pools; the mask puts the IPv4 one on a pod's link, as ``ptp`` needs it."""


HOST_NETWORK = os.open("/proc/self/ns/net", os.O_RDONLY)
"""That of this process when the tests begin."""


class Node:
    """A machine with its daemon and its runtime; ``pods`` are those that were started and not stopped, by name."""

    def __init__(self, daemon: MachineDaemon, runtime: Runtime, etcd: EtcdProcess, fabric: Fabric) -> None:
        self.daemon, self.runtime, self.etcd = daemon, runtime, etcd
        self.pods: dict[str, Pod] = {}
        self._fabric = fabric

    def start(self, name: str) -> Pod:
        """Start a pod; its addresses are nobody else's."""
        pod = self.runtime.start_pod(name)
        held = {address: other for other in list(self.pods.values()) for address in other.addresses}
        assert pod.addresses
        assert not held.keys() & set(pod.addresses), f"{pod} and {[held.get(address) for address in pod.addresses]}"
        self.pods[name] = pod
        return pod

    def stop(self, name: str) -> None:
        """End a pod."""
        self.runtime.stop_pod(self.pods.pop(name).id)

    def reboot(self, *, forgetful: bool = False) -> None:
        """The power goes, and comes back: containers and their namespaces are gone, state and records are kept.

        ``forgetful``: but for those of the runtime.
        """
        self.pods.clear()
        machine = self.runtime.machine
        machine.halt()
        self.runtime.end()
        self.daemon.kill()
        if forgetful:
            shutil.rmtree(machine.disk / "containerd")
            shutil.rmtree(self.runtime.cache)
        machine.boot()
        self._fabric.plug(machine, 1)
        self.daemon.start(ready=False)
        self.runtime.start()

    def holds_what_lives(self, within: float = 30) -> None:
        """The daemon has the addresses of the pods, and no others; etcd, of those from pools, the same."""
        living = {address: pod.id for pod in self.pods.values() for address in pod.addresses}
        wait_for(lambda: self._held() == living, within, lambda: f"{self._held()}\n{living}")
        assert self.runtime.pods() == dict.fromkeys(living.values(), True)
        state = agreed(self.etcd, self.daemon, within=within) if self._pools() else State.of(self.etcd)
        assert set(state.pods()) == (living.keys() if self._pools() else set())
        assert state.problems() == []

    def _held(self) -> dict[str, str]:
        return {view["address"]: view["container"] for view in self.daemon.get("/v1/allocations")}

    def _pools(self) -> bool:
        return "ranges" not in str(self.runtime.network)


MakeNode = Callable[..., Node]


@pytest.fixture(scope="session")
def fabric() -> Fabric:
    """What the node is plugged into, apart from this machine's network."""
    if why := lacking(programs={**PROGRAMS, **RUNTIME}):
        missing(why)
    if "PYTEST_XDIST_WORKER" not in os.environ:  # else it is done
        assert leave_network()
    return Fabric()


@pytest.fixture(scope="session")
def host_network() -> list[str]:
    """What to put before a command that is to reach the packages' servers."""
    return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{HOST_NETWORK}", "--"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory whose path is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="ipamd-e2e-") as name:
        yield Path(name)


@pytest.fixture
def make_node(fabric: Fabric, folder: Path) -> Iterator[MakeNode]:
    """Return a function that makes the node, with a network and more flags for its daemon."""
    build.build()
    with ExitStack() as stack:
        stack.callback(remove_cgroups)

        def make(
            network: Mapping[str, object] = PTP,
            *flags: str,
            names: tuple[str, ...] = ("ipamd",),
            daemon: type[MachineDaemon] = MachineDaemon,
        ) -> Node:
            etcd = stack.enter_context(EtcdProcess(folder / "etcd", host=fabric.address))
            machine = stack.enter_context(Machine("node-a", folder / "disk", ["/var/lib"]))
            fabric.plug(machine, 1)
            store = ("--etcd-endpoints", etcd.endpoint, *POOLS)
            running = stack.enter_context(daemon(machine, folder / "disk" / "ipamd", *store, *flags))
            environment = {
                "IPAMD_SOCKET": str(running.socket), "IPAMD_SPOOL_DIR": str(running.directory / "state" / "del.d"),
                "IPAMD_CONNECT_TIMEOUT": "30000",  # this machine may be busy with other tests while the daemon starts
            }  # fmt: skip
            return Node(running, stack.enter_context(Runtime(machine, network, environment, names)), etcd, fabric)

        yield make
