"""Real containers of a real containerd, started and ended as a kubelet does it, with addresses of a real daemon.

Whatever happens to the daemon, to the containers or to the node: no address is given twice, no container fails to
start, and in the end the daemon and etcd hold the addresses of the living containers and no others.
"""

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.daemon_process import wait_for
from tests.e2e.conftest import PTP, MakeNode, Node
from tests.machine import MachineDaemon

WHOLE = bool(os.environ.get("IPAMD_E2E"))
pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.skipif(not (WHOLE or os.environ.get("CI")), reason="needs containerd: run in CI, and by `make e2e`"),
]
whole = pytest.mark.skipif(not WHOLE, reason="takes minutes: run by `make e2e`")

RANGES = {
    "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}
BRIDGE = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": {"type": "ipamd", **RANGES}}
HOST_LOCAL = {**BRIDGE, "ipam": {"type": "host-local", **RANGES}}

AT_ONCE = 50 if WHOLE else 15


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(PTP, id="ptp"),
        pytest.param(BRIDGE, id="bridge", marks=whole),
        pytest.param(HOST_LOCAL, id="host-local", marks=whole),
    ],
)
def test_containers_reach_each_other(make_node: MakeNode, network: Mapping[str, object]) -> None:
    """By IPv4 and IPv6, from a pool under ptp and from ranges under bridge; stopped, they leave nothing."""
    node = make_node(network, names=("ipamd", "host-local"))
    one, two = node.start("one"), node.start("two")
    assert len(one.addresses) == len(two.addresses) == 2
    for sender, other in ((one, two), (two, one)):
        for address in other.addresses:  # bridge does not wait for the detection of duplicate IPv6 addresses
            wait_for(partial(node.runtime.pings, sender, address), 20)
    node.holds_what_lives()
    node.stop("one")
    node.holds_what_lives()
    node.stop("two")
    node.holds_what_lives()


def test_many_at_once_while_the_daemon_is_killed(make_node: MakeNode) -> None:
    """Fifty containers are started at once (fifteen in CI); the daemon is killed and started again meanwhile."""
    node = make_node()
    names = [f"pod-{number}" for number in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        starting = [pool.submit(node.start, name) for name in names]
        wait_for(lambda: len(node.daemon.get("/v1/allocations")) > 4, 120)
        node.daemon.kill()
        node.daemon.start(ready=False)
        assert len({address for each in starting for address in each.result().addresses}) == 2 * AT_ONCE
        node.daemon.wait_ready(60)
        node.holds_what_lives()
        node.daemon.kill()
        stopping = [pool.submit(node.stop, name) for name in names]
        node.daemon.start()
        for each in stopping:
            each.result()
    node.holds_what_lives()


class Activated(MachineDaemon):
    """The daemon below ``systemd-socket-activate``, which holds the socket while the daemon is upgraded."""

    def start(self, *, ready: bool = True) -> None:
        """Open the socket, on the machine; a shell starts the daemon again and again."""
        again = 'pid=$1; shift; while :; do sh -c \'echo $$ >"$0"; LISTEN_PID=$$ exec "$@"\' "$pid" "$@"; done'
        plain = [
            sys.executable,
            "-m",
            "ipamd",
            "run",
            "--node",
            self.node,
            "--socket",
            str(self.directory / "unused.sock"),
        ]
        plain += ["--state-dir", str(self.directory / "state"), *self.flags]
        command = [
            "systemd-socket-activate",
            "-l",
            str(self.socket),
            "sh",
            "-c",
            again,
            "again",
            str(self._pid_file),
            *plain,
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._machine.enter, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(self.socket.exists)
        if ready:
            self.wait_ready(60)

    @property
    def _pid_file(self) -> Path:
        return self.directory / "pid"

    def upgrade(self) -> None:
        """SIGTERM to the daemon: the next one has other files, and takes the socket over."""
        before = self._pid_file.read_text()
        self._machine.run("kill", before.strip())
        wait_for(lambda: self._pid_file.read_text() not in ("", before), 60)
        self.wait_ready(60)


def load(node: Node, worker: int, over: list[bool]) -> int:
    """Start and stop containers, one after the other, until told; returns how many were started."""
    choose, mine, started = random.Random(worker), [], 0  # noqa: S311 - a repeatable load
    while not over:
        if len(mine) < 2 or (len(mine) < 4 and choose.random() < 0.5):
            mine.append(f"pod-{worker}-{started}")
            node.start(mine[-1])
            started += 1
        else:
            node.stop(mine.pop(choose.randrange(len(mine))))
    return started


@whole
@pytest.mark.parametrize("kind", [MachineDaemon, Activated], ids=["plain", "socket-activated"])
def test_an_upgrade_under_load(make_node: MakeNode, kind: type[MachineDaemon]) -> None:
    """The plugin and the daemon are replaced five times while containers come and go; no start fails."""
    node, over = make_node(daemon=kind), list[bool]()
    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(load, node, worker, over) for worker in range(6)]
        try:
            for _ in range(5):
                count = len(node.pods)
                wait_for(lambda count=count: len(node.pods) != count or any(each.done() for each in running), 60)
                node.runtime.replace_plugin()
                if isinstance(node.daemon, Activated):
                    node.daemon.upgrade()
                else:
                    assert node.daemon.stop() == 0
                    node.daemon.start()
                assert node.runtime.cri.call("Status") is not None
        finally:
            over.append(True)
        assert sum(each.result() for each in running) > 12
    node.holds_what_lives(60)


@whole
def test_gc_frees_what_was_killed_behind_the_runtimes_back(make_node: MakeNode) -> None:
    """Containers vanish without a DEL; a GC with those that live frees the addresses of the others, and no more."""
    node = make_node()
    for number in range(6):
        node.start(f"pod-{number}")
    for name in ("pod-1", "pod-3", "pod-4"):
        node.runtime.destroy(node.pods.pop(name))
    node.runtime.end()
    node.runtime.start()
    assert len(node.daemon.get("/v1/allocations")) == 12

    def collected() -> bool:
        attachments = [{"containerID": pod.id, "ifname": "eth0"} for pod in node.pods.values()]
        config = {**PTP, "cniVersion": "1.1.0", "name": "pods", "cni.dev/valid-attachments": attachments}
        answer = node.daemon.plugin("GC", "", config)
        assert answer.code == 0, answer.text
        return len(node.daemon.get("/v1/allocations")) == 6

    wait_for(collected, 90)  # what is younger than a minute is left alone
    node.holds_what_lives()
    node.start("next")
    node.holds_what_lives()


def test_a_reboot(make_node: MakeNode) -> None:
    """The runtime finds its containers dead and removes them, as a kubelet tells it: their addresses come free."""
    node = make_node()
    before = node.start("one"), node.start("two")
    node.reboot()
    assert node.runtime.pods() == {pod.id: False for pod in before}
    again = node.start("one-again")
    assert not set(again.addresses) & {address for pod in before for address in pod.addresses}
    for pod in before:
        node.runtime.stop_pod(pod.id)
    node.holds_what_lives()


@whole
def test_a_reboot_of_which_the_runtime_forgets_all(make_node: MakeNode) -> None:
    """No DEL ever comes for containers that a lost runtime had: they are released after the grace time, five minutes on."""
    node = make_node(PTP, "--runtime-leak-grace", "60")
    for number in range(3):
        node.start(f"lost-{number}")
    node.reboot(forgetful=True)
    node.start("new")
    assert len(node.daemon.get("/v1/allocations")) == 8
    node.holds_what_lives(420)
    assert node.daemon.metric("ipamd_leaked_addresses_total") == 6
