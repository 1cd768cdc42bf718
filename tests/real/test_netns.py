"""Pods as network namespaces, wired by the real ``ptp`` and ``bridge`` plugins with addresses of a real daemon.

The node is a namespace of its own, so that this machine's addresses, routes and sysctls stay as they are. The pods' and
the node's duplicate address detection is off: with it each IPv6 address takes a second or two to become usable.
"""

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ipamd.api.cni import VERSIONS
from ipamd.cni import build
from ipamd.cni.install import install
from tests.calico_state import State
from tests.daemon_process import Daemon, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import missing

pytestmark = [pytest.mark.real, pytest.mark.root]

POOLS = ("--default-pools-ipv4-cidr", "192.168.0.0/17", "--default-pools-ipv6-cidr", "fd00:10:244::/64")
GATEWAYS = ("192.168.255.254/16", "fe80::1")
"""Outside of the pools; with the mask that puts the IPv4 one on a pod's link, as ``ptp`` needs it."""
NODE_ADDRESSES = ("203.0.113.7", "2001:db8::7")

_numbers = itertools.count()


def ran(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """What a program printed; it must end soon."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, **options)


def run(*command: str) -> str:
    """The output of a program that must succeed."""
    done = ran(*command)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def plugin_directory() -> Path:
    """Where the reference plugins are."""
    for directory in (Path("/usr/lib/cni"), Path("/opt/cni/bin")):
        if (directory / "ptp").exists():
            return directory
    missing("cannot wire pods without the plugin ptp; install containernetworking-plugins (tests/system.sh)")
    raise AssertionError


class Namespace:
    """A network namespace with its loopback interface up; the context manager's end deletes it."""

    def __init__(self) -> None:
        self.name = f"ipamd-{os.getpid()}-{next(_numbers)}"
        self.path = f"/var/run/netns/{self.name}"

    def __enter__(self) -> "Namespace":
        run("ip", "netns", "add", self.name)
        self.run("sh", "-c", "ip link set lo up && echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")
        return self

    def __exit__(self, *_exc: object) -> None:
        ran("ip", "netns", "del", self.name)

    def run(self, *command: str) -> str:
        """The output of a program in the namespace, which must succeed."""
        return run("ip", "netns", "exec", self.name, *command)

    def pings(self, address: str) -> bool:
        """Whether the address answers."""
        return ran("ip", "netns", "exec", self.name, "ping", "-c1", "-W2", address).returncode == 0


class Node:
    """A node: its namespace, its daemon, a directory of plugins with ``ipamd`` in it, and the etcd if there is one."""

    def __init__(
        self, host: Namespace, daemon: Daemon, plugins: Path, reference: Path, etcd: EtcdProcess | None
    ) -> None:
        self.host, self.daemon, self.etcd = host, daemon, etcd
        self._reference = reference
        self._path = f"{plugins}:{reference}"

    def call(
        self, command: str, pod: str, config: Mapping[str, object], *, netns: str, previous: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Call the configuration's main plugin on the node as a runtime does."""
        env = {
            "PATH": os.environ["PATH"], "CNI_PATH": self._path, "IPAMD_SOCKET": str(self.daemon.socket),
            "CNI_COMMAND": command, "CNI_CONTAINERID": pod, "CNI_NETNS": netns, "CNI_IFNAME": "eth0",
        }  # fmt: skip
        asked = {**config, "prevResult": json.loads(previous)} if previous else config
        return ran(
            "ip",
            "netns",
            "exec",
            self.host.name,
            str(self._reference / str(config["type"])),
            input=json.dumps(asked),
            env=env,
        )

    def add(self, pod: str, config: Mapping[str, object], namespace: Namespace) -> str:
        """Wire a pod; returns the result, as the runtime keeps it."""
        done = self.call("ADD", pod, config, netns=namespace.path)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def holds_nothing(self) -> bool:
        """Whether no address is allocated or about to be released."""
        flush = self.daemon.get("/v1/status")["flush"]
        return self.daemon.get("/v1/allocations") == [] and not flush["unflushed"]


def network(version: str = "1.0.0", gateways: tuple[str, ...] = GATEWAYS) -> dict[str, object]:
    """A dual-stack network of ``ptp``."""
    ipam = {
        "type": "ipamd", "assign_ipv4": "true", "assign_ipv6": "true",
        "gateway": list(gateways), "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }  # fmt: skip
    return {"cniVersion": version, "name": "k8s-pod-network", "type": "ptp", "ipam": ipam}


def addresses(result: str) -> list[str]:
    """The addresses of a result of any version, without their masks."""
    answer = json.loads(result)
    if "ips" in answer:
        return [entry["address"].partition("/")[0] for entry in answer["ips"]]
    return [answer[key]["ip"].partition("/")[0] for key in ("ip4", "ip6")]


@pytest.fixture
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A node on the embedded store, or on etcd if the test's parameter says so."""
    if os.geteuid() != 0:
        missing("cannot make network namespaces; run as root")
    for program, package in (("ip", "iproute2"), ("ping", "iputils-ping")):
        if shutil.which(program) is None:
            missing(f"cannot wire pods without {program}; install {package} (tests/system.sh)")
    reference = plugin_directory()
    build.build()
    plugins = tmp_path / "bin"
    plugins.mkdir()
    install(plugins, ["ipamd", "host-local"])
    etcd = request.getfixturevalue("etcd") if getattr(request, "param", "embedded") == "etcd" else None
    store = ("--etcd-endpoints", etcd.endpoint) if etcd else ()
    with Namespace() as host, Daemon(tmp_path / "node", "node-a", *POOLS, *store) as daemon:
        for address in NODE_ADDRESSES:
            host.run("ip", "address", "add", address, "dev", "lo")
        yield Node(host, daemon, plugins, reference, etcd)


@pytest.fixture
def pod() -> Iterator[Callable[[], Namespace]]:
    """Return a function that makes a pod's namespace."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Namespace())


@pytest.mark.parametrize("node", ["embedded", "etcd"], indirect=True)
def test_pods_reach_each_other_and_their_node(node: Node, pod: Callable[[], Namespace]) -> None:
    """Two pods that ptp wired reach each other and the node over IPv4 and IPv6; deleted, they leave no record."""
    one, two = pod(), pod()
    results = [node.add("one", network(), one), node.add("two", network(), two)]
    listed = {view["address"] for view in node.daemon.get("/v1/allocations")}
    assert listed == {address for result in results for address in addresses(result)}
    for sender, others in ((one, addresses(results[1])), (two, addresses(results[0]))):
        for address in (*others, *NODE_ADDRESSES):
            assert sender.pings(address), f"{address}\n{sender.run('ip', 'route')}{sender.run('ip', '-6', 'route')}"
    for address in listed:
        assert node.host.pings(address), address
    for name, namespace, result in (("one", one, results[0]), ("two", two, results[1])):
        done = node.call("DEL", name, network(), netns=namespace.path, previous=result)
        assert done.returncode == 0, done.stdout
        assert not node.host.pings(addresses(result)[0])
    wait_for(node.holds_nothing)
    if node.etcd is not None:
        state = State.of(node.etcd)
        assert len(state.blocks) == 2
        assert (state.pods(), state.pod_handles(), state.problems()) == ({}, set(), [])


def test_every_version_that_ptp_speaks(node: Node, pod: Callable[[], Namespace]) -> None:
    """In each version of CNI that ptp has, pods are wired, checked from 0.4.0 on, and deleted without a trace."""
    reference = ran(str(plugin_directory() / "ptp"), env={"CNI_COMMAND": "VERSION"}, input="{}").stdout
    spoken = [version for version in VERSIONS if version in json.loads(reference)["supportedVersions"]]
    assert {"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0"} <= set(spoken)
    for version in spoken:
        namespace, config = pod(), network(version)
        result = node.add(version, config, namespace)
        assert json.loads(result)["cniVersion"] == version
        assert all(node.host.pings(address) for address in addresses(result)), version
        previous = result if VERSIONS.index(version) >= VERSIONS.index("0.4.0") else ""
        if previous:
            checked = node.call("CHECK", version, config, netns=namespace.path, previous=previous)
            assert checked.returncode == 0, (version, checked.stdout)
        deleted = node.call("DEL", version, config, netns=namespace.path, previous=previous)
        assert deleted.returncode == 0, (version, deleted.stdout)
        assert node.daemon.get("/v1/allocations") == [], version
        if previous:
            gone = node.call("CHECK", version, config, netns=namespace.path, previous=previous)
            assert json.loads(gone.stdout)["code"] == 3, gone.stdout


def test_a_pod_whose_namespace_is_gone_is_released(node: Node, pod: Callable[[], Namespace]) -> None:
    """After a reboot or a crash the runtime deletes without a namespace: the addresses come free all the same."""
    result = node.add("one", network(), pod())
    done = node.call("DEL", "one", network(), netns="", previous=result)
    assert done.returncode == 0, done.stdout
    wait_for(node.holds_nothing)


def test_a_pod_that_cannot_be_wired_keeps_no_address(node: Node, pod: Callable[[], Namespace]) -> None:
    """When ptp fails after the addresses were assigned (no IPv4 route to a gateway off the link), they come free."""
    done = node.call("ADD", "one", network(gateways=("169.254.1.1", "fe80::1")), netns=pod().path)
    assert done.returncode == 1
    assert "unreachable" in json.loads(done.stdout)["msg"]
    assert node.daemon.metric("ipamd_requests_total") == 2, "an ADD and a DEL"
    wait_for(node.holds_nothing)


def test_a_gateway_that_a_pod_could_get_is_refused(node: Node, pod: Callable[[], Namespace]) -> None:
    """A gateway inside of a pool is refused before anything is assigned: some pod would be given it one day."""
    done = node.call("ADD", "one", network(gateways=("192.168.0.1/16", "fe80::1")), netns=pod().path)
    refusal = json.loads(done.stdout)
    assert (done.returncode, refusal["code"]) == (1, 7)
    assert "192.168.0.1 is an address of pool default-ipv4-ippool" in refusal["msg"]
    assert node.holds_nothing()


RANGES = {
    "ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00:1::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}


@pytest.mark.parametrize(
    ("main", "kind"),
    [({"type": "bridge", "bridge": "cni0", "isGateway": True}, "host-local"), ({"type": "ptp"}, "ipamd")],
    ids=["bridge", "ptp"],
)
def test_pods_with_addresses_of_ranges(
    node: Node, pod: Callable[[], Namespace], main: Mapping[str, object], kind: str
) -> None:
    """Pods that bridge or ptp wires with host-local ranges reach one another and the gateway, across a kill -9."""
    config = {"cniVersion": "1.0.0", "name": "lan", **main, "ipam": {"type": kind, **RANGES}}
    one, two = pod(), pod()
    results = [node.add("one", config, one)]
    node.daemon.kill()
    node.daemon.start()
    results.append(node.add("two", config, two))
    assert [addresses(result) for result in results] == [["10.1.0.2", "fd00:1::2"], ["10.1.0.3", "fd00:1::3"]]
    for sender, others in ((one, addresses(results[1])), (two, addresses(results[0]))):
        for address in (*others, "10.1.0.1", "fd00:1::1"):
            assert sender.pings(address), f"{address}\n{sender.run('ip', 'route')}{sender.run('ip', '-6', 'route')}"
    for name, namespace, result in (("one", one, results[0]), ("two", two, results[1])):
        checked = node.call("CHECK", name, config, netns=namespace.path, previous=result)
        assert checked.returncode == 0, checked.stdout
    node.daemon.kill()
    node.daemon.start()
    done = node.call("DEL", "one", config, netns=one.path, previous=results[0])
    assert done.returncode == 0, done.stdout
    assert {view["address"] for view in node.daemon.get("/v1/allocations")} == set(addresses(results[1]))
    assert addresses(node.add("three", config, pod())) == ["10.1.0.4", "fd00:1::4"]
    assert node.daemon.metric("ipamd_unflushed_facts") == 0, "nothing of it is for the store"
