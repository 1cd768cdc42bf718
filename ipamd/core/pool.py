"""IP pools: the CIDRs that blocks are cut from, and what their records say of whom they serve (``core.selection``)."""

import msgspec
from msgspec import Struct

from ipamd.core.address import BITS, Cidr, parse_cidr
from ipamd.core.records import MALFORMED, RecordError
from ipamd.core.selector import Selector, SelectorError, parse_selector, shortened

DEFAULT_BLOCK_SIZE = {4: 26, 6: 122}
LARGEST_BLOCK = {4: 20, 6: 116}
_BLOCK_SIZES = {4: (20, 32), 6: (116, 128)}
"""Calico's limits. A larger block would be a record of gigabytes."""

ALL = parse_selector("all()")


class Pool(Struct, frozen=True):
    """A CIDR that blocks are cut from, and whom it serves.

    ``unreadable`` says what is wrong with a selector that cannot be read; such a pool serves only who names it.
    One that is ``deleting`` is ``disabled`` too.
    """

    name: str
    cidr: Cidr
    block_size: int
    disabled: bool = False
    node_selector: Selector = ALL
    namespace_selector: Selector = ALL
    allowed_uses: tuple[str, ...] = ("Workload", "Tunnel")
    manual: bool = False
    unreadable: str = ""
    deleting: bool = False

    @property
    def family(self) -> int:
        """The pool's IP version."""
        return self.cidr.family

    @property
    def blocks(self) -> int:
        """How many blocks it can be cut into."""
        return 1 << (self.block_size - self.cidr.prefix)

    def block(self, index: int) -> Cidr:
        """The CIDR of its ``index``-th block."""
        size = self.cidr.size // self.blocks
        return Cidr(self.family, self.cidr.base + index * size, self.block_size)

    def enclosing(self, block: Cidr) -> list[Cidr]:
        """The larger blocks, of any legal size, that would contain one of its own."""
        largest = LARGEST_BLOCK[self.family]
        bits = BITS[self.family]
        return [
            Cidr(self.family, block.base >> (bits - prefix) << (bits - prefix), prefix)
            for prefix in range(largest, block.prefix)
        ]

    def cuts(self, block: Cidr) -> bool:
        """Whether ``block`` is one of the blocks it is cut into."""
        return block.prefix == self.block_size and self.cidr.contains(block)


class _Spec(Struct):
    cidr: str
    blockSize: int | None = None  # noqa: N815 - Calico's field name
    disabled: bool = False
    nodeSelector: str = ""  # noqa: N815 - Calico's field name
    namespaceSelector: str = ""  # noqa: N815 - Calico's field name
    allowedUses: list[str] | None = None  # noqa: N815 - Calico's field name
    assignmentMode: str | None = None  # noqa: N815 - Calico's field name


class _Metadata(Struct):
    name: str
    deletionTimestamp: str | None = None  # noqa: N815 - Calico's field name


class _Resource(Struct):
    metadata: _Metadata
    spec: _Spec


def decode_pool(value: bytes) -> Pool:
    """An IPPool record as a value, absent fields as Calico's defaults; raises RecordError."""
    try:
        resource = msgspec.json.decode(value, type=_Resource)
        cidr = parse_cidr(resource.spec.cidr)
    except MALFORMED as error:
        raise RecordError(f"not an IPPool: {error}") from error
    spec = resource.spec
    unreadable: list[str] = []
    deleting = resource.metadata.deletionTimestamp is not None
    size = spec.blockSize or DEFAULT_BLOCK_SIZE[cidr.family]
    low, high = _BLOCK_SIZES[cidr.family]
    if not max(cidr.prefix, low) <= size <= high:
        raise RecordError(f"IPPool {resource.metadata.name}: block size {size} does not fit {cidr}")
    return Pool(
        resource.metadata.name,
        cidr,
        size,
        spec.disabled or deleting,
        _selector("nodeSelector", spec.nodeSelector, unreadable),
        _selector("namespaceSelector", spec.namespaceSelector, unreadable),
        tuple(spec.allowedUses or ("Workload", "Tunnel")),
        spec.assignmentMode == "Manual",
        "; ".join(unreadable),
        deleting,
    )


def _selector(field: str, text: str, unreadable: list[str]) -> Selector:
    try:
        return parse_selector(text) if text else ALL
    except SelectorError as error:
        unreadable.append(f"its {field} ({shortened(text)}) cannot be read: {error}")
        return Selector(text, ())
