"""What Calico's records in etcd say, read with nothing of the code under test, and whether they agree.

``State.of(etcd)`` takes all of ``/calico/`` at one revision. ``problems`` lists where blocks, affinities and handles
contradict one another; ``differences`` where they contradict what daemons say of themselves; ``agreed`` waits for
neither to be.
"""

import ipaddress
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.daemon_process import Daemon, wait_for
from tests.etcd_process import EtcdProcess

IPAM = "/calico/ipam/v2/"
OURS = "/calico/ipamd/"
"""Where ipamd writes what is no record of Calico's."""
TUNNEL_HANDLES = ("ipip-tunnel-addr-", "vxlan-tunnel-addr-", "vxlan-v6-tunnel-addr-", "wireguard-")


class State:
    """Blocks and handles by name, affinities by (node, block); values are decoded JSON."""

    def __init__(self, records: Mapping[str, bytes]) -> None:
        self.records = dict(records)
        self.blocks: dict[str, dict[str, Any]] = {}
        self.handles: dict[str, dict[str, Any]] = {}
        self.affinities: dict[tuple[str, str], dict[str, Any]] = {}
        for key, value in records.items():
            if key.startswith(IPAM + "assignment/"):
                self.blocks[_cidr(key)] = json.loads(value)
            elif key.startswith(IPAM + "handle/"):
                self.handles[key.removeprefix(IPAM + "handle/")] = json.loads(value)
            elif key.startswith(IPAM + "host/"):
                node = key.removeprefix(IPAM + "host/").partition("/")[0]
                self.affinities[node, _cidr(key)] = {"state": "confirmed", **json.loads(value or b"{}")}

    @classmethod
    def of(cls, etcd: EtcdProcess) -> "State":
        """All records, at one revision."""
        return cls({key: value for key, value in etcd.get_prefix("/calico/").items() if not key.startswith(OURS)})

    def allocations(self) -> Iterator[tuple[str, str, str]]:
        """Address, handle and node of everything allocated to a handle."""
        for cidr, block in self.blocks.items():
            base = ipaddress.ip_network(cidr).network_address
            for ordinal, index in enumerate(block["allocations"]):
                owner = {} if index is None else block["attributes"][index]
                if owner.get("handle_id"):
                    yield str(base + ordinal), owner["handle_id"], owner.get("secondary", {}).get("node", "")

    def pods(self, node: str | None = None) -> dict[str, str]:
        """Address to handle of what is neither a node's reserve nor a tunnel's, of one node or of all."""
        return {
            address: handle
            for address, handle, its in self.allocations()
            if not handle.startswith(("ipamd-reserve-", *TUNNEL_HANDLES)) and node in (None, its)
        }

    def pod_handles(self) -> set[str]:
        """The handle records that are neither a reserve's nor a tunnel's."""
        return {handle for handle in self.handles if not handle.startswith(("ipamd-reserve-", *TUNNEL_HANDLES))}

    def problems(self) -> list[str]:
        """Where the records contradict one another; empty: they are sound."""
        found = [f"block {cidr}: {problem}" for cidr, block in self.blocks.items() for problem in _block(cidr, block)]
        return [*found, *self._affinity_problems(), *self._handle_problems()]

    def _affinity_problems(self) -> Iterator[str]:
        for cidr, block in self.blocks.items():
            node = (block["affinity"] or "").removeprefix("host:")
            if node and self.affinities.get((node, cidr), {}).get("state") != "confirmed":
                yield f"block {cidr} belongs to {node}, which has no confirmed affinity to it"
        for node, cidr in self.affinities:
            owner = self.blocks.get(cidr, {}).get("affinity")
            if owner != f"host:{node}":
                yield f"{node} has an affinity to {cidr}, which is {owner or 'nobody'}'s"

    def _handle_problems(self) -> Iterator[str]:
        counted: dict[str, Counter[str]] = {}
        for cidr, block in self.blocks.items():
            for index in block["allocations"]:
                handle = None if index is None else block["attributes"][index].get("handle_id")
                if handle:
                    counted.setdefault(handle, Counter())[cidr] += 1
        for handle in counted.keys() | self.handles.keys():
            said = self.handles.get(handle, {}).get("block", {})
            if said != counted.get(handle, {}):
                yield f"handle {handle} counts {said}, the blocks have {dict(counted.get(handle, {}))}"


def differences(state: State, daemons: Iterable[Daemon]) -> list[str]:
    """Where etcd and the daemons' own reports contradict one another; empty: both say the same."""
    found = state.problems()
    for daemon in daemons:
        node = daemon.node
        views = daemon.get("/v1/allocations")
        pods = {view["address"]: view["handle"] for view in views}
        if len(pods) != len(views):
            found.append(f"{node} lists an address twice")
        found += [f"{node} has not flushed {view['address']}" for view in views if not view["flushed"]]
        reserve = {address for view in daemon.get("/v1/reserve") for address in view["addresses"]}
        blocks = {view["cidr"] for view in daemon.get("/v1/blocks") if view["affine"]}
        pairs = (
            ("pods", pods, state.pods(node)),
            (
                "reserve",
                reserve,
                {a for a, handle, _ in state.allocations() if handle.startswith(f"ipamd-reserve-{node}.")},
            ),
            ("blocks", blocks, {cidr for owner, cidr in state.affinities if owner == node}),
        )
        found += [f"{what} of {node}: it says {said}, etcd {true}" for what, said, true in pairs if said != true]
        if unflushed := daemon.get("/v1/status")["flush"]["unflushed"]:
            found.append(f"{node} has {unflushed} facts to flush")
    return found


def supplied(daemon: Daemon) -> bool:
    """Whether the daemon has so much in reserve that it will not top it up before something else is to be written."""
    reserves = daemon.get("/v1/reserve")
    return bool(reserves) and all(
        view["available"] * 2 > view["target"] if view["target"] else not view["available"] for view in reserves
    )


def agreed(etcd: EtcdProcess, *daemons: Daemon, within: float = 10.0) -> State:
    """Wait until etcd and the daemons say the same and no reserve is low; returns what they say.

    ``within``: seconds after which that fails, in the words of ``differences``.
    """
    states: list[State] = []

    def agree() -> bool:
        quiet = all(map(supplied, daemons))
        states[:] = [State.of(etcd)]
        return quiet and not differences(states[0], daemons)

    wait_for(agree, within, lambda: differences(State.of(etcd), daemons))
    return states[0]


def _block(cidr: str, block: Mapping[str, Any]) -> Iterator[str]:
    allocated = {ordinal for ordinal, index in enumerate(block["allocations"]) if index is not None}
    if block["cidr"] != cidr:
        yield f"it calls itself {block['cidr']}"
    if sorted(block["unallocated"]) != sorted(set(range(len(block["allocations"]))) - allocated):
        yield "unallocated and allocations do not add up"
    if {block["allocations"][ordinal] for ordinal in allocated} != set(range(len(block["attributes"]))):
        yield "not every attribute is referred to, or a reference leads nowhere"
    sequences = block.get("sequenceNumberForAllocation", {})
    if not {int(ordinal) for ordinal in sequences} <= allocated:
        yield f"sequence numbers of ordinals that are free: {sequences}"
    if any(number >= block["sequenceNumber"] for number in sequences.values()):
        yield "an allocation with a sequence number that the block has not reached"


def _cidr(key: str) -> str:
    return "/".join(key.rpartition("/")[2].rsplit("-", 1))
