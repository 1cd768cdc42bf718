"""The facts a node's ledger consists of: what the journal stores and what replay applies.

A fact is a frozen value. The sequence of all facts, applied in order to an empty ledger, is the ledger; a
checkpoint is a shorter sequence with the same outcome. The journal encodes ``Fact`` as MessagePack, tagged by
``type`` (field ``t``), so fields may be added (with a default) but never renamed or given another meaning.
"""

from msgspec import Struct


class Attachment(Struct, frozen=True, array_like=True):
    """One interface of one container in one network: what CNI calls an attachment."""

    network: str
    container: str
    interface: str

    @property
    def handle(self) -> str:
        """The handle id that Calico's plugin uses for the container's allocations; a tunnel's is in its place."""
        return f"{self.network}.{self.container}" if self.network else self.container


NOBODY = Attachment("", "", "")
"""In place of an attachment where a release ends none that is known."""


class Place(Struct, frozen=True, array_like=True):
    """One address: a block by its CIDR, and the ordinal in it."""

    block: str
    ordinal: int


class Committed(Struct, frozen=True, tag="committed", tag_field="t"):
    """A record as the store holds it: its key, value (None: absent) and the revision of its last change."""

    key: str
    revision: int
    value: bytes | None


class Assigned(Struct, frozen=True, tag="assigned", tag_field="t"):
    """An attachment holds these places since ``at`` (Unix time in ns); acknowledged or about to be."""

    attachment: Attachment
    handle: str
    places: tuple[Place, ...]
    labels: dict[str, str]
    """What goes into the allocation's ``secondary`` attributes beside node and timestamp: pod, namespace."""
    at: int
    began: int = 0
    """When the ADD began (CLOCK_BOOTTIME, ns): a DEL that began earlier ends another life. 0: in an earlier boot."""
    asked: tuple[int, ...] = ()
    """The IP versions of which an address was asked for: it is answered without its block's mask."""


class Released(Struct, frozen=True, tag="released", tag_field="t"):
    """An attachment gave up these places of one handle (none: it was unknown).

    ``started`` is when the DEL began (CLOCK_BOOTTIME, ns): an ADD of the same attachment that began earlier and
    arrives later is refused. 0 leaves no such mark: the release ends no attachment that is known.
    """

    attachment: Attachment
    handle: str
    places: tuple[Place, ...]
    started: int


class Withdrawn(Struct, frozen=True, tag="withdrawn", tag_field="t"):
    """These reserved ordinals of a block are about to be given back: never to be handed out from memory again.

    Durable before the transaction that gives them back is sent: otherwise a restart without the store could hand
    out an address that another node already took.
    """

    block: str
    ordinals: tuple[int, ...]


class Rebooted(Struct, frozen=True, tag="rebooted", tag_field="t"):
    """The host was booted: readings of CLOCK_BOOTTIME before this fact are earlier than any after it."""


class SetBack(Struct, frozen=True, tag="set_back", tag_field="t"):
    """The store was set back to an older state: from here on its records count whatever their revisions."""


class Draining(Struct, frozen=True, tag="draining", tag_field="t"):
    """An operator has the node give back all that no pod holds, and assign nothing; or (``on`` false) no longer."""

    on: bool


class RangeAssigned(Struct, frozen=True, tag="range_assigned", tag_field="t"):
    """An attachment holds these addresses (canonical texts) of host-local ranges, one of each range set in their order.

    The other fields are as in ``Assigned``. Such an address is never in the store.
    """

    attachment: Attachment
    addresses: tuple[str, ...]
    labels: dict[str, str]
    at: int
    began: int = 0


class RangeReleased(Struct, frozen=True, tag="range_released", tag_field="t"):
    """An attachment gave up what it held of host-local ranges."""

    attachment: Attachment


class RangeCursors(Struct, frozen=True, tag="range_cursors", tag_field="t"):
    """The address last given out of each range set of a network, by the set's position: what comes next follows it."""

    network: str
    addresses: dict[int, str]


Fact = (
    Committed
    | Assigned
    | Released
    | Withdrawn
    | Rebooted
    | SetBack
    | Draining
    | RangeAssigned
    | RangeReleased
    | RangeCursors
)
