"""What must be true of a store and the nodes that share it, whenever they are at rest."""

from collections.abc import Sequence

from ipamd.core import keys
from ipamd.core.check import check
from ipamd.core.facts import Place
from tests.core.cluster import Cluster
from tests.memory_store import MemoryStore
from tests.nodes import Node


def view(store: MemoryStore) -> Cluster:
    """The store as blocks, handles and allocations."""
    cluster = Cluster()
    cluster.records, cluster.revision = store.records, store.revision
    return cluster


def held(nodes: Sequence[Node]) -> dict[Place, str]:
    """The places of all pods of all nodes, with their handles; fails if two pods have one."""
    places: dict[Place, str] = {}
    for node in nodes:
        for assigned in node.ledger.holdings.values():
            for place in assigned.places:
                assert place not in places, f"{place} is held twice"
                places[place] = assigned.handle
    return places


def nobody_shares(store: MemoryStore, nodes: Sequence[Node]) -> None:
    """At any instant: no address in two pods; each is, in the store, the pod's or its node's reserve."""
    held(nodes)
    allocations = view(store).allocations()
    for node in nodes:
        for assigned in node.ledger.holdings.values():
            for place in assigned.places:
                assert allocations[place][0] in (assigned.handle, node.ledger.reserve_handle)


def at_rest(store: MemoryStore, nodes: Sequence[Node], *, strangers: Sequence[str] = ()) -> None:
    """At rest: the store has exactly what the pods hold, the reserves, and what ``strangers`` (handles) hold."""
    cluster = view(store)
    allocations = cluster.allocations()
    names = {node.ledger.reserve_handle for node in nodes} | set(strangers)
    assert {place: handle for place, (handle, _n, _k) in allocations.items() if handle not in names} == held(nodes)
    assert cluster.handles() == cluster.counted()
    affinities = {
        (key.split("/")[5], str(keys.cidr_of(key)))
        for key in store.records
        if keys.kind_of(key) is keys.Kind.AFFINITY and key.split("/")[5] in {node.ledger.node for node in nodes}
    }
    owned = {(str(block.affinity).removeprefix("host:"), cidr) for cidr, block in cluster.blocks().items()}
    assert affinities == {pair for pair in owned if pair[0] in {node.ledger.node for node in nodes}}
    for node in nodes:
        assert check(node.ledger) == []
        reserve = {place for place, (handle, _n, _k) in allocations.items() if handle == node.ledger.reserve_handle}
        known = {block.place(ordinal) for block in node.ledger.blocks.values() for ordinal in block.line()}
        assert known == reserve
