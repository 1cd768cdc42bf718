"""Who has the addresses of a block by its record, counted by state. Pure functions.

An address in ipamd's reserve is allocated in Calico's records, but no pod has it: whoever counts addresses in use, or
looks for lost ones, tells the two apart here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from ipamd.core.address import Cidr
from ipamd.core.keys import RESERVE, host_affinity, reserve_handle
from ipamd.core.records import WINDOWS_HANDLE, BlockRecord, Owner
from ipamd.core.tunnel import is_handle

State = Literal["free", "reserve", "pod", "tunnel", "cooling", "quarantined", "other"]
"""``other``: held by what is no workload, tunnel or reserve; ``quarantined``: in the reserve of a lost state file."""


def state_of(owner: Owner | None, serving: Mapping[str, str]) -> State:
    """What an ordinal's owner makes of it.

    ``serving`` has the name of the state file of each node that a daemon serves: another one's reserve is quarantined.
    """
    if owner is None:
        return "free"
    if owner.released_at:
        return "cooling"
    if owner.handle.startswith(RESERVE):
        instance = serving.get(owner.node)
        lost = instance is not None and owner.handle != reserve_handle(owner.node, instance)
        return "quarantined" if lost else "reserve"
    if owner.handle == WINDOWS_HANDLE:
        return "other"
    if "type" in owner.secondary or is_handle(owner.handle, owner.node):
        return "tunnel"
    return "pod"


Cell = Literal[State, "reserved", "borrowed in", "borrowed out"]
"""What an ordinal is to a node: ``reserved`` is free but for an IPReservation."""


def borrowed(record: BlockRecord, owner: Owner) -> bool:
    """Whether another node than the block's has an address of it; one that names no node is taken for the block's."""
    return bool(owner.node) and record.affinity != host_affinity(owner.node)


class BlockUse(Struct, frozen=True):
    """The addresses of a block: ``total``, by ``states`` those that somebody has.

    ``barred`` are those that an IPReservation keeps back, whoever has them; ``free`` what neither keeps from a pod.
    """

    cidr: Cidr
    affinity: str
    total: int
    states: Mapping[State, int]
    barred: int
    free: int

    @property
    def in_use(self) -> int:
        """How many are nobody's to be given: all that somebody has, but for ipamd's reserve."""
        return sum(count for state, count in self.states.items() if state != "reserve")


def count(record: BlockRecord, barred: int, serving: Mapping[str, str]) -> BlockUse:
    """Count a block's ordinals; ``barred`` is the bitmap of those that an IPReservation keeps back."""
    of_owner = [state_of(owner, serving) for owner in record.owners]
    states = Counter[State]()
    for index, many in Counter(record.allocations).items():
        if index is not None:
            states[of_owner[index]] += many
    free = record.cidr.size - sum(states.values()) + states["reserve"]
    if barred:
        kept = sum(
            barred >> ordinal & 1
            for ordinal, index in enumerate(record.allocations)
            if index is None or of_owner[index] == "reserve"
        )
        free -= kept
    return BlockUse(record.cidr, record.affinity or "", record.cidr.size, states, barred.bit_count(), free)


def cells(record: BlockRecord, barred: int, serving: Mapping[str, str], node: str = "") -> list[Cell]:
    """What each ordinal is to ``node``, or to the node that the block belongs to.

    What another node has in reserve there is reserve; only its pods and tunnels borrow.
    """
    of_owner: list[Cell] = []
    for owner in record.owners:
        state = state_of(owner, serving)
        lent = state in ("pod", "tunnel") and borrowed(record, owner)
        of_owner.append(("borrowed in" if owner.node == node else "borrowed out") if lent else state)
    return [
        ("reserved" if barred >> ordinal & 1 else "free") if index is None else of_owner[index]
        for ordinal, index in enumerate(record.allocations)
    ]


class PoolUse(Struct, frozen=True):
    """The addresses of a pool: sums over its blocks, and what no block has yet. Fields as those of ``BlockUse``."""

    name: str
    cidr: Cidr
    blocks: Sequence[BlockUse]
    barred: int

    @property
    def total(self) -> int:
        """How many addresses it has."""
        return self.cidr.size

    @property
    def states(self) -> Mapping[State, int]:
        """How many addresses somebody has, by state."""
        states = Counter[State]()
        for block in self.blocks:
            states.update(block.states)
        return states

    @property
    def in_use(self) -> int:
        """How many are nobody's to be given."""
        return sum(block.in_use for block in self.blocks)

    @property
    def free(self) -> int:
        """How many neither a holder nor an IPReservation keeps from a pod."""
        outside = self.total - sum(block.total for block in self.blocks)
        return outside - (self.barred - sum(block.barred for block in self.blocks)) + sum(b.free for b in self.blocks)


def barred_in(cidr: Cidr, reservations: Iterable[Cidr]) -> int:
    """How many addresses of a network the reservations keep back, each counted once."""
    last: Cidr | None = None
    found = 0
    for each in sorted(set(reservations)):  # a larger one comes before those of the same first address
        if each.overlaps(cidr) and not (last and last.contains(each)):
            last, found = each, found + each.size
    return min(cidr.size, found)
