"""Blocks and facts for the core's tests: a block's image as the store would hold it."""

from collections.abc import Mapping

from ipamd.core.address import parse_cidr
from ipamd.core.block import Block
from ipamd.core.facts import Assigned, Attachment, Place
from ipamd.core.records import BlockRecord, attribute, new_block

NODE = "n1"
RESERVE = f"ipamd-reserve-{NODE}"
NET = "k8s-pod-network"


def attachment(container: str, interface: str = "eth0") -> Attachment:
    """An interface of a container in the pods' network."""
    return Attachment(NET, container, interface)


def assigned(container: str, *places: tuple[str, int], interface: str = "eth0", began: int = 1) -> Assigned:
    """The fact that a container holds these places."""
    who = attachment(container, interface)
    return Assigned(who, who.handle, tuple(Place(*place) for place in places), {"pod": container}, 1, began)


def image(cidr: str, owners: Mapping[int, str], *, affinity: str | None = f"host:{NODE}", node: str = NODE) -> bytes:
    """A block in which the ordinals are held by these handles, in this order; all but the reserve are ``node``'s."""
    record = new_block(parse_cidr(cidr), affinity or "", 1000)
    record.affinity = affinity
    for ordinal, handle in owners.items():
        ours = handle == RESERVE
        secondary = {"node": NODE, "type": "ipipTunnelAddress"} if ours else {"node": node}
        record.take({ordinal}, attribute(handle, secondary))
        record.sequence += 1
    return record.encode()


def block(cidr: str, owners: Mapping[int, str], revision: int = 1) -> Block:
    """A block of this node with a committed image."""
    made = Block(cidr, NODE, RESERVE)
    merge(made, owners, revision)
    return made


def merge(target: Block, owners: Mapping[int, str], revision: int, *, node: str = NODE) -> None:
    """The store now gives the block's ordinals to these handles."""
    value = image(target.cidr, owners, node=node)
    target.merge(BlockRecord(value), value, revision)
