"""Facts, and files of facts, for the journal's tests."""

from collections.abc import Iterable

from ipamd.core.facts import (
    NOBODY,
    Assigned,
    Attachment,
    Committed,
    Draining,
    Fact,
    Place,
    RangeAssigned,
    RangeCursors,
    RangeReleased,
    Released,
    Withdrawn,
)
from ipamd.journal.format import HEADER_SIZE, Header, encode_page, frame, frames

NODE = "node-1"
BOOT = "6c1e5ad1-58bb-4a43-a1a8-3f1d0b8f0c11"
OTHER_BOOT = "0e6f0a5c-2fd6-4b2f-9b0a-0d5d6a4f0b52"


def file_size(facts: Iterable[Fact]) -> int:
    """How long (bytes) a new state file of these facts is."""
    return HEADER_SIZE + sum(map(len, frames(facts)))


def assigned(number: int) -> Assigned:
    """The fact with this number in its ``at``."""
    attachment = Attachment("k8s-pod-network", f"container-{number}", "eth0")
    place = Place("10.0.0.0/26", number % 64)
    return Assigned(attachment, attachment.handle, (place,), {"pod": f"web-{number}"}, number, number)


EACH_KIND: tuple[Fact, ...] = (
    Committed("/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26", 7, b'{"cidr":"10.0.0.0/26"}'),
    Committed("/calico/v3/Pool", 8, None),
    assigned(1),
    Assigned(NOBODY, "", (), {}, 1, 2, (4, 6)),
    Released(Attachment("net", "c", "eth0"), "net.c", (Place("fd00::/122", 0),), 123),
    Withdrawn("10.0.0.0/26", (1, 2, 3)),
    Draining(on=True),
    RangeAssigned(Attachment("net", "c", "eth0"), ("10.1.0.2", "fd00::2"), {"pod": "web"}, 1, 2),
    RangeReleased(Attachment("net", "c", "eth0")),
    RangeCursors("net", {0: "10.1.0.2", 1: "fd00::2"}),
)


def state(*records: tuple[Fact, ...], committed: int | None = None, durable: int = HEADER_SIZE) -> bytes:
    """A file with these records, one for each tuple; all committed unless told otherwise."""
    body = b"".join(frame(facts) for facts in records)
    length = HEADER_SIZE + len(body) if committed is None else committed
    return encode_page(Header(NODE, BOOT, 0, HEADER_SIZE, durable), length) + body
