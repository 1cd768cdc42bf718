"""IP pools, and which of them serve a request.

Calico's precedence: pools that the request names (by name or CIDR) must exist and be enabled, selectors are then
ignored; else every enabled ``Automatic`` pool whose selectors match. Then the pool must allow the use. Pools are
tried in name order. A pod never gets an address from a pool that was not meant for it.
"""

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from ipamd.core.address import BITS, Cidr, parse_cidr
from ipamd.core.errors import Code, RefusedError
from ipamd.core.records import MALFORMED, RecordError

DEFAULT_BLOCK_SIZE = {4: 26, 6: 122}
LARGEST_BLOCK = {4: 20, 6: 116}
_BLOCK_SIZES = {4: (20, 32), 6: (116, 128)}
"""Calico's limits. A larger block would be a record of gigabytes."""


class Pool(Struct, frozen=True):
    """A CIDR that blocks are cut from, and whom it serves."""

    name: str
    cidr: Cidr
    block_size: int
    disabled: bool = False
    node_selector: str = "all()"
    namespace_selector: str = ""
    allowed_uses: tuple[str, ...] = ("Workload", "Tunnel")
    manual: bool = False

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

    def exclusion(self, use: str) -> str:
        """Why the pool does not serve ``use`` by itself; "" if it does."""
        if self.disabled:
            return "is disabled"
        if self.manual:
            return "is Manual (only for requests that name it)"
        if use not in self.allowed_uses:
            return self.use_exclusion(use)
        if not _selects_all(self.node_selector):
            return f"excludes this node by its nodeSelector ({self.node_selector})"
        if not _selects_all(self.namespace_selector):
            return f"excludes the namespace by its namespaceSelector ({self.namespace_selector})"
        return ""

    def use_exclusion(self, use: str) -> str:
        """Why the pool may not be used for ``use``, which it does not allow."""
        return f"is not allowed for use {use} (allowedUses: {', '.join(self.allowed_uses)})"


def _selects_all(selector: str) -> bool:
    # Any other selector counts as not matching: a pod that waits is better than one in a pool not meant for it.
    return selector.strip() in ("", "all()")


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
    size = spec.blockSize or DEFAULT_BLOCK_SIZE[cidr.family]
    low, high = _BLOCK_SIZES[cidr.family]
    if not max(cidr.prefix, low) <= size <= high:
        raise RecordError(f"IPPool {resource.metadata.name}: block size {size} does not fit {cidr}")
    return Pool(
        resource.metadata.name,
        cidr,
        size,
        spec.disabled or resource.metadata.deletionTimestamp is not None,
        spec.nodeSelector or "all()",
        spec.namespaceSelector,
        tuple(spec.allowedUses or ("Workload", "Tunnel")),
        spec.assignmentMode == "Manual",
    )


def serving(pools: Iterable[Pool], family: int, use: str = "Workload") -> list[Pool]:
    """The pools that serve requests which name none, in name order."""
    return sorted((p for p in pools if p.family == family and not p.exclusion(use)), key=lambda p: p.name)


def choose(pools: Iterable[Pool], family: int, named: Sequence[str], subject: str) -> list[Pool]:
    """The pools to try for one address of ``subject`` (whom the error names), in order.

    Raises RefusedError (NO_POOL) that says for each pool what excluded it.
    """
    pools = [pool for pool in pools if pool.family == family]
    if named:
        return _named(pools, family, named, subject)
    chosen = serving(pools, family)
    if chosen:
        return chosen
    reasons = "; ".join(f"pool {p.name} {p.exclusion('Workload')}" for p in sorted(pools, key=lambda p: p.name))
    raise RefusedError(
        Code.NO_POOL,
        f"cannot assign an IPv{family} address to {subject}: {reasons or f'there is no IPv{family} pool'}; "
        "enable or create a pool that serves this node",
    )


def _named(pools: Sequence[Pool], family: int, named: Sequence[str], subject: str) -> list[Pool]:
    chosen = []
    for name in named:
        pool = next((p for p in pools if name in (p.name, str(p.cidr))), None)
        if pool is None:
            problem = "does not exist"
        elif pool.disabled:
            problem = "is disabled"
        elif "Workload" not in pool.allowed_uses:
            problem = pool.use_exclusion("Workload")
        else:
            chosen.append(pool)
            continue
        raise RefusedError(
            Code.NO_POOL,
            f"cannot assign an IPv{family} address to {subject}: pool {name}, which the request names, {problem}; "
            "name an enabled pool of this IP version, by name or CIDR",
        )
    return sorted(chosen, key=lambda pool: pool.name)
