"""What a BGP speaker does for the nodes: the blocks that etcd gives to one are reached by the others through it.

A node's affinities are its claims of blocks, so they are all that has to be known: no route for a single pod crosses
the fabric. Learned routes stay when etcd is away, as with a speaker whose peers still answer.
"""

import threading
from collections.abc import Mapping

from tests.calico_state import State
from tests.etcd_process import EtcdProcess
from tests.machine import Machine

PAUSE = 0.1
"""Seconds between looks."""

Route = tuple[str, str]
"""A block, and the address of the node that it is behind."""


def routes(state: State, addresses: Mapping[str, tuple[str, str]]) -> dict[str, set[Route]]:
    """What each node has to know of the others; ``addresses``: IPv4 and IPv6 of the nodes."""
    found: dict[str, set[Route]] = {node: set() for node in addresses}
    for (owner, block), affinity in state.affinities.items():
        if affinity["state"] == "confirmed" and owner in addresses:
            via = addresses[owner][":" in block]
            for node in addresses.keys() - {owner}:
                found[node].add((block, via))
    return found


class Speaker:
    """Keeps the routes of all nodes until the context is left; ``known`` are those that are set."""

    def __init__(self, etcd: EtcdProcess, machines: Mapping[str, tuple[Machine, tuple[str, str]]]) -> None:
        self._etcd, self._machines = etcd, machines
        self.known: dict[str, set[Route]] = {node: set() for node in machines}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Speaker":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> None:
        """Set what is new and take away what is gone."""
        addresses = {node: its for node, (_machine, its) in self._machines.items()}
        for node, wanted in routes(State.of(self._etcd), addresses).items():
            machine, _ = self._machines[node]
            for block, via in sorted(wanted - self.known[node]):
                machine.run("ip", "route", "replace", block, "via", via)
            for block, _via in sorted(self.known[node] - wanted):
                machine.run("ip", "route", "delete", block)
            self.known[node] = wanted

    def _run(self) -> None:
        while not self._over.wait(PAUSE):
            try:
                self.look()
            except (OSError, AssertionError):  # etcd is away, or the cluster is being taken down
                continue
