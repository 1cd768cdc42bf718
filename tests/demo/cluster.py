"""Three nodes out of namespaces on one machine, with one etcd, a daemon on each, and pods that real plugins wire."""

import itertools
import json
import os
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from ipamd.cni import build
from ipamd.cni.install import install
from tests.daemon_process import addresses_of
from tests.demo.routing import Speaker
from tests.etcd_process import EtcdProcess
from tests.machine import Fabric, Machine, MachineDaemon, reference_plugins

NODES = ("node-a", "node-b", "node-c")
POOLS = ("--default-pools-ipv4-cidr", "192.168.0.0/17", "--default-pools-ipv6-cidr", "fd00:10:244::/64")
NETWORK = {
    "cniVersion": "1.0.0", "name": "pods", "type": "ptp",
    "ipam": {
        "type": "ipamd", "assign_ipv4": "true", "assign_ipv6": "true",
        "gateway": ["192.168.255.254/16", "fe80::1"], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
}  # fmt: skip
"""The gateways lie outside of the pools; the mask puts the IPv4 one on a pod's link, as ``ptp`` needs it."""


class Pod(NamedTuple):
    """A pod that runs: its node and its addresses, IPv4 first; ``took``: milliseconds from the runtime's call to its end."""

    name: str
    node: "Node"
    addresses: tuple[str, ...]
    took: float


class Node:
    """A machine with its daemon and its plugins."""

    def __init__(self, machine: Machine, addresses: tuple[str, str], endpoint: str, plugins: Path) -> None:
        self.machine, self.addresses = machine, addresses
        self.daemon = MachineDaemon(
            machine, machine.disk / "ipamd", *POOLS, "--etcd-endpoints", endpoint, "--log-level", "warning"
        )
        self._plugins = plugins

    @property
    def name(self) -> str:
        """Of the node."""
        return self.machine.name

    def cni(self, command: str, pod: str, plugin: Path, config: Mapping[str, object]) -> bytes:
        """Call a plugin as a runtime does; returns what it printed, and fails if it was refused."""
        env = {
            "PATH": os.environ["PATH"], "CNI_PATH": f"{self._plugins}:{reference_plugins()}",
            "IPAMD_SOCKET": str(self.daemon.socket), "CNI_COMMAND": command, "CNI_CONTAINERID": f"container-{pod}",
            "CNI_NETNS": f"/run/netns/{pod}", "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}",
        }  # fmt: skip
        asked = json.dumps(config).encode()
        call = [*self.machine.enter, plugin]
        done = subprocess.run(call, input=asked, capture_output=True, check=False, timeout=60, env=env)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        return done.stdout

    def start_pod(self, name: str) -> Pod:
        """A network namespace, wired by ``ptp`` with addresses of ipamd."""
        self.machine.run("ip", "netns", "add", name)
        self.machine.run("ip", "netns", "exec", name, "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")
        reference = reference_plugins()
        assert reference is not None
        began = time.monotonic()
        result = self.cni("ADD", name, reference / "ptp", NETWORK)
        return Pod(name, self, tuple(addresses_of(result)), (time.monotonic() - began) * 1000)

    def ask_again(self, pod: Pod) -> tuple[str, ...]:
        """The ADD of a pod once more, of ipamd's plugin alone, as after an answer that was lost; returns the addresses."""
        return tuple(addresses_of(self.cni("ADD", pod.name, self._plugins / "ipamd", NETWORK)))

    def stop_pod(self, pod: Pod) -> None:
        """DEL, and the namespace is gone."""
        reference = reference_plugins()
        assert reference is not None
        self.cni("DEL", pod.name, reference / "ptp", NETWORK)
        self.machine.run("ip", "netns", "delete", pod.name)

    def pings(self, pod: Pod, address: str) -> bool:
        """Whether an address answers a pod of this node."""
        command = [*self.machine.enter, "ip", "netns", "exec", pod.name, "ping", "-c1", "-W2", "-q", address]
        return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


class Cluster:
    """All of it below ``folder``, as a context manager. Its program must have left the host's network."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self.nodes: list[Node] = []

    def __enter__(self) -> "Cluster":
        with ExitStack() as stack:
            self._begin(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()

    def _begin(self, stack: ExitStack) -> None:
        plugins = self._folder / "bin"
        plugins.mkdir()
        build.build()
        install(plugins, ["ipamd"])
        fabric = Fabric()
        self.etcd = stack.enter_context(EtcdProcess(self._folder / "etcd", host=fabric.address))
        for number, name in enumerate(NODES, 1):
            machine = stack.enter_context(Machine(name, self._folder / name))
            fabric.plug(machine, number)
            node = Node(machine, fabric.of(number), self.etcd.endpoint, plugins)
            stack.enter_context(node.daemon)
            self.nodes.append(node)
        speaking = {node.name: (node.machine, node.addresses) for node in self.nodes}
        self.speaker = stack.enter_context(Speaker(self.etcd, speaking))


def pairs(pods: list[Pod]) -> list[tuple[Pod, Pod]]:
    """Each pod with each pod of another node."""
    return [(one, other) for one, other in itertools.permutations(pods, 2) if one.node is not other.node]
