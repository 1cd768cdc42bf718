"""``python -m tests.demo``: shows ipamd on a cluster of three nodes, in half a minute, and takes all of it away again.

Each line that begins with "ok" was looked at; if something is not so, the demonstration ends there with 1.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.calico_state import State, agreed
from tests.daemon_process import wait_for
from tests.demo.cluster import Cluster, Node, Pod, pairs
from tests.machine import lacking, leave_network

PACE = 1.5 if sys.stdout.isatty() else 0.0
"""Seconds for a spectator to read a part."""


class UntrueError(Exception):
    """What is to be shown is not so."""


class Stage:
    """What is said, and at the end once more what was shown."""

    def __init__(self) -> None:
        self._parts = 0
        self._shown: list[str] = []

    def part(self, title: str) -> None:
        """A new part, after a pause."""
        time.sleep(PACE if self._parts else 0)
        self._parts += 1
        self.say(f"\n{self._parts}. {title}\n")

    def say(self, text: str = "") -> None:
        """A line, at once also in a pipe."""
        print(text, flush=True)

    def show(self, what: str, holds: bool) -> None:
        """A claim that was looked at."""
        if not holds:
            raise UntrueError(what)
        self._shown.append(what)
        self.say(f"   ok: {what}")

    def end(self, seconds: float) -> None:
        """All of it, once more."""
        self.say(f"\nShown in {seconds:.0f} s:\n")
        for what in self._shown:
            self.say(f"  - {what}")


def ipamctl(cluster: Cluster, *words: str) -> str:
    """What ``ipamctl`` prints, straight from etcd."""
    command = [sys.executable, "-m", "ipamd.ctl", "--etcd-endpoints", cluster.etcd.endpoint, *words]
    plain = {"PATH": os.environ["PATH"], "COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=plain)
    if done.returncode:
        raise UntrueError(f"ipamctl {' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout.rstrip()


def start(stage: Stage, node: Node, name: str) -> Pod:
    """Start a pod and say so."""
    pod = node.start_pod(name)
    stage.say(f"   {node.name}   {name}   {pod.addresses[0]:<16} {pod.addresses[1]:<38} {pod.took:4.0f} ms")
    return pod


def all_reach(pods: list[Pod]) -> bool:
    """Whether each pod reaches those of the other nodes by their IPv4 and IPv6 addresses."""
    return all(one.node.pings(one, address) for one, other in pairs(pods) for address in other.addresses)


def settled(cluster: Cluster, *, routes: bool = True) -> None:
    """Wait until etcd says what the daemons say, and the speakers know it."""
    state = agreed(cluster.etcd, *(node.daemon for node in cluster.nodes), within=20)
    if routes:
        wait_for(lambda: all(len(known) == len(state.affinities) * 2 // 3 for known in cluster.speaker.known.values()))


def nodes_and_pods(stage: Stage, cluster: Cluster) -> list[Pod]:
    """The first three parts: blocks, pods, routes."""
    wait_for(lambda: all(len(node.daemon.get("/v1/blocks")) == 2 for node in cluster.nodes), 20)
    for node in cluster.nodes:
        blocks = [view["cidr"] for view in node.daemon.get("/v1/blocks")]
        stage.say(f"   {node.name}   {node.addresses[0]}   blocks {', '.join(sorted(blocks))}")
    stage.show(
        "each node has its blocks before the first pod asks", all(n.daemon.get("/v1/blocks") for n in cluster.nodes)
    )

    stage.part("Two pods on each node: ptp wires them, ipamd gives them their addresses from memory")
    pods = [
        start(stage, node, f"web-{2 * index + count}") for index, node in enumerate(cluster.nodes) for count in (1, 2)
    ]
    given = [address for pod in pods for address in pod.addresses]
    stage.show("no address twice", len(set(given)) == len(given) == 12)

    stage.part("Routes between the nodes, from the block affinities in etcd, as a BGP speaker makes them")
    settled(cluster)
    first = cluster.nodes[0]
    for version in ("-4", "-6"):
        known = first.machine.run("ip", version, "-o", "route", "show", "dev", "eth0").splitlines()
        for line in sorted(line.partition(" metric")[0].strip() for line in known if " via " in line):
            stage.say(f"   {first.name}   {line}")
    one, other = pods[0], pods[5]
    reply = first.machine.run("ip", "netns", "exec", one.name, "ping", "-c1", "-W2", other.addresses[0])
    stage.say(f"\n   {one.name} on {one.node.name} to {other.name} on {other.node.name}:")
    stage.say(f"   {reply.splitlines()[1]}")
    stage.show("all pods reach all pods of other nodes, by IPv4 and IPv6: 48 pings", all_reach(pods))
    return pods


def crash(stage: Stage, node: Node, pods: list[Pod]) -> Pod:
    """A daemon is killed; returns the pod that was started meanwhile."""
    mine = [pod for pod in pods if pod.node is node]
    others = [pod for pod in pods if pod.node is not node]
    node.daemon.kill()
    stage.say(f"   {node.name}'s daemon is gone")
    stage.show(
        "pods go on while their daemon is gone", all(mine[0].node.pings(mine[0], pod.addresses[0]) for pod in others)
    )
    node.daemon.start(ready=False)
    pod = start(stage, node, "late-1")
    stage.show(
        "a pod started meanwhile waits for the new daemon and gets its addresses",
        node.pings(pod, others[0].addresses[0]),
    )
    again = {each.name: node.ask_again(each) for each in mine}
    for each in mine:
        stage.say(f"   ADD of {each.name} once more: {again[each.name][0]}")
    stage.show(
        "an ADD that is repeated gets the same addresses", all(again[each.name] == each.addresses for each in mine)
    )
    return pod


def outage(stage: Stage, cluster: Cluster, node: Node, pods: list[Pod]) -> Pod:
    """The store stops; returns the pod that was started from the reserve."""
    settled(cluster)
    reserve = sum(view["available"] for view in node.daemon.get("/v1/reserve"))
    stage.say(f"   {node.name} has {reserve} addresses in reserve")
    cluster.etcd.kill()
    stage.say("   etcd is gone")
    pod = start(stage, node, "dark-1")
    unflushed = node.daemon.get("/v1/status")["flush"]["unflushed"]
    stage.say(f"   {unflushed} facts wait in {node.name}'s state file")
    stage.show("a pod starts while etcd is away, and reaches the other nodes", all_reach([pod, pods[0], pods[2]]))
    cluster.etcd.start()
    settled(cluster, routes=False)
    known = State.of(cluster.etcd).pods(node.name)
    stage.show("etcd knows of that pod once it is back", set(pod.addresses) <= known.keys())
    return pod


def play(stage: Stage, folder: Path) -> None:
    """All parts."""
    stage.say("ipamd: a cluster of three nodes on this machine, with real daemons, a real etcd and real CNI plugins.")
    stage.say("Ctrl-C ends it; either way nothing of it remains.")
    stage.part("Three nodes out of namespaces, one etcd, a daemon on each node")
    with Cluster(folder) as cluster:
        _, middle, last = cluster.nodes
        pods = nodes_and_pods(stage, cluster)
        stage.part("Who has what: ipamctl ipam show --show-blocks")
        stage.say(ipamctl(cluster, "ipam", "show", "--show-blocks"))
        stage.part(f"kill -9 of {middle.name}'s daemon, and a new one")
        pods.append(crash(stage, middle, pods))
        stage.part("etcd stops")
        pods.append(outage(stage, cluster, last, pods))
        stage.part("The block map: ipamctl ipam show --map")
        stage.say(ipamctl(cluster, "ipam", "show", "--map"))
        held = agreed(cluster.etcd, *(node.daemon for node in cluster.nodes)).pods()
        living = {address for pod in pods for address in pod.addresses}
        stage.show("etcd names the addresses of the eight pods, and no others", set(held) == living)
        stage.part("All pods are deleted")
        for pod in pods:
            pod.node.stop_pod(pod)
        wait_for(lambda: not agreed(cluster.etcd, *(node.daemon for node in cluster.nodes)).pods(), 20)
        found = ipamctl(cluster, "ipam", "check").splitlines()
        stage.say("\n".join(f"   {line}".rstrip() for line in found))
        stage.show("nothing is left of them in etcd, and its records agree", "found 0 problems" in "".join(found))


def interrupted(*_: object) -> None:
    """End it: a second Ctrl-C must not cut the end short."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Look whether it can be shown here, and show it."""
    if missing := lacking():
        print(f"make demo: {missing}", file=sys.stderr)
        return 1
    if not leave_network():
        print("make demo: cannot make network namespaces: not allowed here (a container?)", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    stage, began = Stage(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ipamd-demo-") as folder:
        try:
            play(stage, Path(folder))
        except KeyboardInterrupt:
            stage.say("\nEnded before its end; nothing of it remains.")
            return 130
        except (UntrueError, AssertionError) as untrue:
            stage.say(f"\nThat is not so: {untrue}")
            return 1
    stage.end(time.monotonic() - began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
