"""Claiming a block without asking the whole cluster. Pure: what to try next, given what was learnt.

Candidates come from a walk through the pool's blocks seeded by the node's name, so that nodes that start at once
diverge. A transaction tries a few of them, each on condition that nobody has it; if none is free its answer brings a
window of the keys that exist, in which holes can be seen. Only when windows have covered the whole pool and shown no
hole is it exhausted. etcd never lists values, nor more keys than it takes to find a hole.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

from ipamd.core import keys, supply
from ipamd.core.address import BITS, Cidr
from ipamd.core.block import Block
from ipamd.core.clock import Now
from ipamd.core.ledger import Ledger
from ipamd.core.pool import Pool
from ipamd.core.records import BlockRecord, affinity_record, new_block
from ipamd.store.base import Change, KeyRange, Outcome
from ipamd.store.draft import reserve_attribute
from ipamd.store.known import Known

TRIES = 3
"""Candidates a transaction: filling a pool to 90 % costs 2.6 round trips a claim with one, about 1.2 with three."""

WINDOW = 500
"""Keys a window: 20 kB at most."""

MAX_STEPS = 1 << 18
"""How far the walk is followed at all: a pool of /8 in blocks of /26."""

NEIGHBOURS = 5000
"""Keys read to see whether a smaller block is inside a claimed one: a /20 and its textual neighbours, of /32s."""

LOOK_AHEAD = 8192
"""How far the walk is followed in search of holes in a window: a pool of /16 has 1,024 blocks of /26."""


class Search:
    """One search for a free block in a pool, over as many transactions as it takes."""

    def __init__(self, node: str, pool: Pool) -> None:
        self.pool = pool
        self._node = node
        self._taken: set[str] = set()
        low, high = (keys.block_key(pool.block(index)) for index in (0, pool.blocks - 1))
        self._prefix = _common_prefix(low, high)
        # Not at the beginning of a large pool: all who search would see the same holes, and be in one another's way.
        own = keys.block_key(next(walk(node, pool)))
        self._first = self._cursor = own if pool.blocks > WINDOW else self._prefix
        self._end = self._prefix + _END
        self._windows = 0
        self._wrapped = self._complete = False

    def candidates(self) -> list[Cidr]:
        """The next blocks to try: holes that the windows showed, else the next of the walk; none: it is exhausted."""
        # Nothing is known yet, or all is: then every step that finds no hole finds a block that is taken.
        if not self._windows or self._complete:
            return list(islice(self._untried(walk(self._node, self.pool)), TRIES))
        ahead = islice(walk(self._node, self.pool), LOOK_AHEAD)
        holes = (cidr for cidr in self._untried(ahead) if self._covered(keys.block_key(cidr)))
        return list(islice(holes, TRIES)) or list(islice(self._untried(walk(self._node, self.pool)), TRIES))

    def _covered(self, key: str) -> bool:
        """Whether a window showed all that there is around a key."""
        if self._wrapped:
            return key >= self._first or key < self._cursor
        return self._first <= key < self._cursor

    def _untried(self, candidates: Iterable[Cidr]) -> Iterator[Cidr]:
        return (cidr for cidr in islice(candidates, MAX_STEPS) if keys.block_key(cidr) not in self._taken)

    @property
    def window(self) -> KeyRange:
        """The keys to return if no candidate is free."""
        return KeyRange(self._cursor, self._end, WINDOW)

    def learn(self, tried: Sequence[Cidr], outcome: Outcome) -> None:
        """Take in the answer to a transaction in which no candidate was free."""
        for cidr in tried:
            key = keys.block_key(cidr)
            if key in outcome.records or any(
                keys.block_key(larger) in outcome.records for larger in self.pool.enclosing(cidr)
            ):
                self._taken.add(key)
        self._taken.update(outcome.window)
        self._windows += 1
        if len(outcome.window) == WINDOW:
            self._cursor = outcome.window[-1] + "\0"
        elif self._wrapped or self._first == self._prefix:  # all was shown; round again, for others claim meanwhile
            self._complete, self._wrapped = True, False
            self._cursor, self._end = self._first, self._prefix + _END
        else:  # the windows came to the end: what is left is before the first
            self._wrapped, self._cursor, self._end = True, self._prefix, self._first

    def learn_all(self, existing: Iterable[str]) -> None:
        """Take in the keys of all blocks there are."""
        self._taken.update(existing)
        self._complete = True

    def bar(self, cidr: Cidr) -> None:
        """Never try this block: it is this node's already, or has no address that may be assigned."""
        self._taken.add(keys.block_key(cidr))


_END = "\x7f"
"""Sorts after every character of a key."""


def walk(node: str, pool: Pool) -> Iterator[Cidr]:
    """All blocks of a pool in an order of the node's own: from a start, with an odd stride, both by hash."""
    digest = hashlib.blake2b(f"{node} {pool.cidr}/{pool.block_size}".encode(), digest_size=32).digest()
    start = int.from_bytes(digest[:16], "big") % pool.blocks
    stride = (
        int.from_bytes(digest[16:], "big") % pool.blocks | 1
    )  # odd, the number of blocks a power of two: visits all
    for step in range(pool.blocks):
        yield pool.block((start + step * stride) % pool.blocks)


def claim(
    ledger: Ledger,
    known: Known,
    pool: Pool,
    cidr: Cidr,
    now: Now,
    *,
    revision: int = 0,
    wanted: Collection[int] = (),
) -> Sequence[Change]:
    """The change set that makes a block this node's, a share of it already in the reserve; empty: it has none to give.

    ``wanted``: reserve exactly these ordinals, which somebody asked for.

    It also holds only while no larger block contains this one (comparisons without a change): a pool may have been
    made anew with another block size while old blocks are in use. In an order of which every prefix is safe: an
    affinity without a block is repaired by whoever meets it, a handle that counts too many holds nothing back.
    ``revision`` is that of the empty block which it replaces, 0 if there must be none.
    """
    record = new_block(cidr, keys.host_affinity(ledger.node), now.unix)
    block = Block(str(cidr), ledger.node, ledger.reserve_handle)
    reserved = set(wanted or _share(ledger, pool, block, record, now))
    if not reserved:
        return ()
    record.take(reserved, reserve_attribute(ledger, record, now.unix))
    affinity = keys.affinity_key(ledger.node, cidr)
    handle_key = keys.handle_key(ledger.reserve_handle)
    handle = known.handle(ledger.reserve_handle)
    handle.set(str(cidr), len(reserved))
    return (
        Change(affinity, affinity_record("confirmed", known.value(affinity)), known.revision(affinity)),
        Change(handle_key, handle.encode(), known.revision(handle_key)),
        Change(keys.block_key(cidr), record.encode(), revision),
        *(Change(keys.block_key(larger), None, 0) for larger in pool.enclosing(cidr)),
    )


def _share(ledger: Ledger, pool: Pool, block: Block, record: BlockRecord, now: Now) -> list[int]:
    waiting = ledger.reserve(pool.name, now.boot).waiting > 0
    ordinals = supply.reservable(ledger, block, record, waiting=waiting)
    missing = len(ordinals) if ledger.settings.config.strict_affinity else supply.shortage(ledger, pool, now.boot)
    return ordinals[: max(1, missing)]


def keys_among(pool: Pool, after: str = "") -> KeyRange:
    """The keys among which a pool's blocks are; ``after``: beyond the last that was told."""
    prefix = _common_prefix(keys.block_key(pool.block(0)), keys.block_key(pool.block(pool.blocks - 1)))
    return KeyRange(after + "\0" if after else prefix, prefix + _END, WINDOW)


def neighbours(cidr: Cidr) -> KeyRange:
    """The keys among which a smaller block inside this one would be."""
    last = Cidr(cidr.family, cidr.base + cidr.size - 1, BITS[cidr.family])
    first = Cidr(cidr.family, cidr.base, BITS[cidr.family])
    prefix = _common_prefix(keys.block_key(first), keys.block_key(last))
    return KeyRange(prefix, prefix + _END, NEIGHBOURS)


def overlaps(cidr: Cidr, block_keys: Iterable[str]) -> bool:
    """Whether any of these blocks shares addresses with ``cidr`` and is not ``cidr`` itself."""
    for key in block_keys:
        try:
            other = keys.cidr_of(key)
        except ValueError:  # no block's key: nobody can have addresses of it
            continue
        if other != cidr and other.overlaps(cidr):
            return True
    return False


def _common_prefix(low: str, high: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]
