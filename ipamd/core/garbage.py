"""Garbage collection: what a network's attachments hold that the runtime no longer knows.

The runtime lists the attachments that it considers valid (CNI specification 1.1.0, "GC"); everything else of the same
network on this node is released, as by a DEL. Nothing of another network is touched.
"""

from collections.abc import Iterator, Mapping, Set

from ipamd.core.clock import Now
from ipamd.core.facts import Assigned, Attachment, RangeAssigned, RangeReleased, Released
from ipamd.core.ledger import Ledger
from ipamd.core.records import Owner, parse_go_time

YOUNG = 60_000_000_000
"""What was assigned so recently (ns) is kept: its ADD may have ended after the runtime made its list.

By the clock that never jumps; of what only the store knows there is but the time that its writer's clock gave.
"""


def collect(ledger: Ledger, network: str, valid: Set[tuple[str, str]], now: Now) -> list[Released | RangeReleased]:
    """Release what no valid attachment, a pair of container id and interface, holds; the facts to make durable.

    An allocation under a container's handle that names no interface, as Calico's plugin writes it, is kept as long as
    any attachment of the container is valid.
    """
    gone: list[Released | RangeReleased] = []
    holdings: list[Assigned | RangeAssigned] = [*ledger.holdings.values(), *ledger.ranges.holdings.values()]
    for held in holdings:
        known = held.attachment.network != network or (held.attachment.container, held.attachment.interface) in valid
        young = held.began and now.boot - held.began < YOUNG  # not of an earlier boot
        if not known and not young:
            gone += released(held, now)
    gone += _adopted(ledger, network, {container for container, _interface in valid}, now)
    for fact in gone:
        ledger.apply(fact)
    return gone


def released(held: Assigned | RangeAssigned, now: Now) -> Iterator[Released | RangeReleased]:
    """The facts that release all that an attachment holds, as by a DEL that began now."""
    if isinstance(held, Assigned):
        yield Released(held.attachment, held.handle, held.places, now.boot)
    else:
        yield Released(held.attachment, held.attachment.handle, (), now.boot)  # against an ADD that comes late
        yield RangeReleased(held.attachment)


def _adopted(ledger: Ledger, network: str, containers: Set[str], now: Now) -> Iterator[Released]:
    handles = {handle for block in ledger.blocks.values() for handle in block.adopted}
    for handle in sorted(handles):
        name, _dot, container = handle.rpartition(".")
        owners = list(owners_of(ledger, handle))
        if (
            name != network
            or container in containers
            or handle in {".".join(pod_of(owner.secondary)) for owner in owners}
        ):
            continue  # the last: an older Calico's, of namespace and pod, which says nothing of the network
        times = [parse_go_time(owner.secondary.get("timestamp", "")) for owner in owners]
        if not any(at is not None and abs(now.unix - at) < YOUNG for at in times):
            yield from ledger.unclaimed(Attachment(network, container, ""), [handle], now.boot)


def owners_of(ledger: Ledger, handle: str) -> Iterator[Owner]:
    """What the store says of the allocations of a handle that this daemon did not make."""
    for block in ledger.blocks.values():
        for ordinal in block.adopted.get(handle, ()):
            owner = None if block.record is None else block.record.owner(ordinal)
            if owner is not None:
                yield owner


def pod_of(said: Mapping[str, str]) -> tuple[str, str]:
    """Namespace and name of the pod, by an allocation's labels or attributes; empty if they do not say both."""
    return (said["namespace"], said["pod"]) if said.get("namespace") and said.get("pod") else ("", "")
