"""IP pools: the CIDRs that blocks are cut from, and what their records say of whom they serve (``core.selection``)."""

import msgspec
from msgspec import Struct

from ipamd.core.address import BITS, Cidr, parse_cidr
from ipamd.core.records import MALFORMED, RecordError
from ipamd.core.selector import Selector, SelectorError, parse_selector, shortened

DEFAULT_BLOCK_SIZE = {4: 26, 6: 122}
BLOCK_SIZES = {4: range(20, 33), 6: range(116, 129)}
"""The prefix lengths that Calico takes, by IP version. A larger block would be a record of gigabytes."""

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
        return [larger for larger in blocks_around(block.family, block.base) if larger.prefix < block.prefix]

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


def blocks_around(family: int, value: int) -> list[Cidr]:
    """The blocks, one of each size that Calico takes, in which an address (as an integer) may be; the largest first."""
    bits = BITS[family]
    return [Cidr(family, value >> (bits - prefix) << (bits - prefix), prefix) for prefix in BLOCK_SIZES[family]]


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
    if size < cidr.prefix or size not in BLOCK_SIZES[cidr.family]:
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
