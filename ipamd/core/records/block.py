"""Allocation blocks: who holds which ordinal, and an edit of that."""

from collections import Counter
from collections.abc import Mapping

import msgspec
from msgspec import Raw, Struct

from ipamd.core.address import Cidr, parse_cidr
from ipamd.core.records.encoding import MALFORMED, RecordError, go_json, parse_rfc3339, rfc3339

RESERVE_NOTE = "ipamd reserve"
WINDOWS_HANDLE = "windows-reserved-ipam-handle"
"""Calico's name for the addresses of a block that Windows keeps for itself."""
_CLAIM_TIME = "affinity_claim_time"


class Owner(Struct, frozen=True):
    """Who holds an ordinal: a block's attribute, as far as it is understood here."""

    handle: str
    """Without the ``\\r...`` that a handle may carry; "" if the allocation has none."""
    node: str
    secondary: dict[str, str]
    released_at: str = ""
    """Since when the address is cooling: it is nobody's, and not to be given to anybody yet. "" if it is not."""


class _Attribute(Struct, frozen=True):
    handle_id: str | None = None
    secondary: dict[str, str] | None = None
    releasedAt: str = ""  # noqa: N815 - Calico's field name

    def owner(self) -> Owner:
        secondary = self.secondary or {}
        handle = (self.handle_id or "").partition("\r")[0]
        return Owner(handle, secondary.get("node", ""), secondary, "" if handle else self.releasedAt)


def attribute(handle: str, secondary: Mapping[str, str]) -> Raw:
    """An attribute as Calico writes it: the handle, and the secondary attributes sorted by key."""
    return Raw(go_json({"handle_id": handle, "secondary": dict(sorted(secondary.items()))}))


def cooling_attribute(at: int) -> Raw:
    """The attribute of an address that was released at ``at`` (Unix time, ns) and is cooling."""
    return Raw(go_json({"releasedAt": rfc3339(at)}))


_UNWRITTEN = Raw(b"")
"""In place of an attribute that is its owner's, and is written with the block."""


class BlockRecord:
    """An allocation block. Mutable while an edit is prepared; ``encode`` gives the bytes to store.

    ``allocations[ordinal]`` is None (free) or an index into ``attributes`` (raw JSON) and ``owners`` (the same,
    understood); ``unallocated`` holds the free ordinals, the one that has been free the longest first.
    """

    __slots__ = (
        "_fields",
        "affinity",
        "allocations",
        "attributes",
        "cidr",
        "owners",
        "sequence",
        "sequences",
        "unallocated",
    )

    def __init__(self, value: bytes) -> None:
        try:
            self._fields = _decode_fields(value)
            known = _decode_block(value)
            self.cidr = parse_cidr(known.cidr)
            self.owners = [_decode_attribute(raw).owner() for raw in known.attributes]
        except MALFORMED as error:
            raise RecordError(f"not an allocation block: {error}") from error
        self.affinity = known.affinity
        self.allocations = known.allocations
        self.unallocated = known.unallocated
        self.attributes = known.attributes
        self.sequence = known.sequenceNumber
        self.sequences = known.sequenceNumberForAllocation or {}
        self._check()

    def copy(self) -> "BlockRecord":
        """One to edit, at a fraction of the cost of reading the bytes again."""
        made = object.__new__(BlockRecord)
        made._fields = dict(self._fields)
        made.cidr, made.affinity, made.sequence = self.cidr, self.affinity, self.sequence
        made.owners, made.attributes = list(self.owners), list(self.attributes)
        made.allocations, made.unallocated = list(self.allocations), list(self.unallocated)
        made.sequences = dict(self.sequences)
        return made

    def _check(self) -> None:
        size = self.cidr.size
        if len(self.allocations) != size:
            raise RecordError(f"block {self.cidr} has {len(self.allocations)} allocations, not {size}")
        free = {ordinal for ordinal, index in enumerate(self.allocations) if index is None}
        if len(self.unallocated) != len(free) or set(self.unallocated) != free:
            raise RecordError(f"block {self.cidr}: unallocated and allocations do not agree")
        used = set(self.allocations) - {None}
        if not used <= set(range(len(self.attributes))):
            raise RecordError(f"block {self.cidr}: an allocation points at an attribute that does not exist")

    @property
    def claimed_at(self) -> int | None:
        """When its owner claimed it (Unix time, ns); None if that is not said, or cannot be understood."""
        try:
            return parse_rfc3339(msgspec.json.decode(self._fields.get(_CLAIM_TIME, b'""'), type=str))
        except MALFORMED:
            return None

    @property
    def deleted(self) -> bool:
        """Softly deleted: to be treated as absent."""
        return bytes(self._fields.get("deleted", b"")) == b"true"  # a Raw equals no bytes

    def revive(self, affinity: str) -> None:
        """Take the mark of a soft deletion away: the block belongs to ``affinity``, and keeps its allocations."""
        self.affinity = affinity
        self._fields["deleted"] = Raw(b"false")

    @property
    def empty(self) -> bool:
        """Whether nobody has an address of it; what is set aside in a block for a Windows node does not count."""
        return all(index is None or self.owners[index].handle == WINDOWS_HANDLE for index in self.allocations)

    def owner(self, ordinal: int) -> Owner | None:
        """Who holds an ordinal; None if it is free."""
        index = self.allocations[ordinal]
        return None if index is None else self.owners[index]

    def free(self, ordinal: int) -> None:
        """Free an allocated ordinal: it goes to the tail of ``unallocated``."""
        self.allocations[ordinal] = None
        self.unallocated.append(ordinal)
        self.sequences.pop(str(ordinal), None)

    def give(self, ordinal: int, raw: Raw) -> None:
        """Give an ordinal to the owner that ``raw`` describes, whoever had it before.

        The caller removes it from ``unallocated`` if it was free (``take`` does).
        """
        self._point(ordinal, raw)
        self.sequences[str(ordinal)] = self.sequence

    def assign(self, ordinal: int, owner: Owner) -> None:
        """Give an ordinal, free or not, to an owner. The attribute is written when the block is, as that takes longer.

        It is that of another ordinal of the same owner, if there is one that says nothing else.
        """
        if self.allocations[ordinal] is None:
            self.unallocated.remove(ordinal)
        index = self._shared(owner) if owner in self.owners else None
        if index is None:
            index = len(self.owners)
            self.owners.append(owner)
            self.attributes.append(_UNWRITTEN)
        self.allocations[ordinal] = index
        self.sequences[str(ordinal)] = self.sequence

    def _shared(self, owner: Owner) -> int | None:
        """The attribute that says of this owner what a new one would, and no more."""
        same = (_UNWRITTEN, attribute(owner.handle, owner.secondary))
        found = (i for i, each in enumerate(self.owners) if each == owner and self.attributes[i] in same)
        return next(found, None)

    def cool(self, ordinal: int, raw: Raw) -> None:
        """Take an allocated ordinal from its owner and let it cool (``cooling_attribute``).

        It stays allocated, with the sequence number of the allocation that ended.
        """
        self._point(ordinal, raw)

    def _point(self, ordinal: int, raw: Raw) -> None:
        try:
            index = self.attributes.index(raw)
        except ValueError:
            index = len(self.attributes)
            self.attributes.append(raw)
            self.owners.append(_decode_attribute(raw).owner())
        self.allocations[ordinal] = index

    def take(self, ordinals: set[int], raw: Raw) -> None:
        """Give free ordinals to one owner."""
        self.unallocated = [ordinal for ordinal in self.unallocated if ordinal not in ordinals]
        for ordinal in sorted(ordinals):
            self.give(ordinal, raw)

    def count(self, handle: str) -> int:
        """How many ordinals a handle holds."""
        return self.counts()[handle]

    def counts(self) -> Counter[str]:
        """How many ordinals each handle holds; 0 for all others."""
        times = Counter(self.allocations)  # each index once: the attributes are far fewer than a block's ordinals
        counts: Counter[str] = Counter()
        for index, owner in enumerate(self.owners):
            if times[index]:
                counts[owner.handle] += times[index]
        return counts

    def encode(self) -> bytes:
        """The bytes to store: unused attributes dropped, the sequence number one higher."""
        self._compact()
        self.sequence += 1
        fields: dict[str, object] = dict(self._fields)
        fields["affinity"] = self.affinity
        if self.affinity is None:
            fields.pop(_CLAIM_TIME, None)
        fields["allocations"] = self.allocations
        fields["unallocated"] = self.unallocated
        fields["attributes"] = [
            attribute(owner.handle, owner.secondary) if raw is _UNWRITTEN else raw
            for raw, owner in zip(self.attributes, self.owners, strict=True)
        ]
        fields["sequenceNumber"] = self.sequence
        deleted = fields.pop("deleted") if "sequenceNumberForAllocation" not in fields and "deleted" in fields else None
        fields["sequenceNumberForAllocation"] = dict(sorted(self.sequences.items()))
        if deleted is not None:  # an old block has no such map; Calico writes it before this field
            fields["deleted"] = deleted
        return go_json(fields)

    def _compact(self) -> None:
        used = sorted({index for index in self.allocations if index is not None})
        if len(used) == len(self.attributes):
            return
        renumbered = {old: new for new, old in enumerate(used)}
        self.attributes = [self.attributes[old] for old in used]
        self.owners = [self.owners[old] for old in used]
        self.allocations = [None if index is None else renumbered[index] for index in self.allocations]


class _KnownBlock(Struct):
    cidr: str
    allocations: list[int | None]
    unallocated: list[int]
    attributes: list[Raw]
    affinity: str | None = None
    sequenceNumber: int = 0  # noqa: N815 - Calico's field name
    sequenceNumberForAllocation: dict[str, int] | None = None  # noqa: N815 - Calico's field name


# Made once: each flush reads a block's image back, of up to 64 attributes.
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_block = msgspec.json.Decoder(_KnownBlock).decode
_decode_attribute = msgspec.json.Decoder(_Attribute).decode


def new_block(cidr: Cidr, affinity: str, at: int) -> BlockRecord:
    """An empty block that nobody has stored yet, its sequence number starting at the current time (ns)."""
    return BlockRecord(
        go_json(
            {
                "cidr": str(cidr),
                "affinity": affinity,
                _CLAIM_TIME: rfc3339(at),
                "allocations": [None] * cidr.size,
                "unallocated": list(range(cidr.size)),
                "attributes": [],
                "sequenceNumber": at,
                "sequenceNumberForAllocation": {},
                "deleted": False,
            }
        )
    )
