"""Borrowing addresses of other nodes' blocks, when no block of a pool can be claimed. Pure: where to look, what to do.

What is borrowed is reserved like our own: allocated to this node's reserve handle, in a block whose affinity is
another's or nobody's. What is not null in a block, another node's reserve included, is never free.
"""

import hashlib
from collections import deque
from collections.abc import Collection, Iterable, Sequence

from ipamd.core import keys, supply
from ipamd.core.block import Block
from ipamd.core.clock import SECOND, Now
from ipamd.core.ledger import Ledger
from ipamd.core.pool import Pool
from ipamd.core.records import BlockRecord
from ipamd.core.reserve import RETRY_AFTER
from ipamd.store.base import Change, Record
from ipamd.store.claim import claim
from ipamd.store.draft import reserve_attribute
from ipamd.store.known import Known

ADDRESSES = 2048
"""About how many addresses' worth of blocks is read at once: 32 blocks of /26, half a megabyte when they are full."""

ROUND = 25_000_000
"""How long a block that had nothing is left alone while somebody waits (ns)."""

PATIENCE = 1_500_000_000
"""How long a hunt goes on when no block had anything (ns): what pods elsewhere gave up is on its way to the store.

A busy node takes a second to flush it; a refusal costs the pod ten, until the runtime tries again.
"""

RECLAIM_AGE = 60_000_000_000
"""How old another node's claim of an empty block must be before it may be taken over (ns), as in Calico."""


class Hunt:
    """The search of one pool's blocks for free addresses, over as many reads as it takes.

    It lives from one need to the next: the blocks that were looked at the longest ago come first, so that an ADD does
    not begin anew where another has just found nothing. ``began`` is when the present need arose, 0 if there is none;
    ``baffled`` when all blocks had been looked at since and had nothing, 0 before; ``looked`` when the last look was.
    ``supplied`` is the reserve's at the last look: while addresses come in, the need begins anew.
    """

    def __init__(self, node: str, pool: Pool) -> None:
        self.began = self.baffled = self.looked = 0
        self.supplied = 0
        self._listed: int | None = None
        self._node, self._pool = node, pool
        self._chunk = max(1, min(32, ADDRESSES // pool.block(0).size))
        self._line: deque[str] = deque()
        self._seen: dict[str, int] = {}

    def begin(self, now: int) -> None:
        """A need arose."""
        self.began, self.baffled = now, 0

    def end(self) -> None:
        """The need is over."""
        self.began = self.baffled = 0

    def learn(self, listed: Iterable[str], now: int) -> None:
        """These are the keys of the blocks there are, at ``now``; new ones come first, in the node's own order."""
        found = set(listed)
        fresh = sorted(
            found - self._seen.keys(), key=lambda key: hashlib.blake2b(f"{self._node} {key}".encode()).digest()
        )
        self._line = deque([*fresh, *(key for key in self._line if key in found)])
        self._seen = {key: self._seen.get(key, -1) for key in self._line}
        self._listed = now

    def outdated(self, now: int) -> bool:
        """Whether the blocks are to be listed again: others claim and give back all the time."""
        return self._listed is None or now - self._listed >= RETRY_AFTER

    def due(self, now: int, own: Collection[str]) -> list[str]:
        """The keys of the blocks to look at next, none if all had nothing a moment ago.

        Those that are the node's ``own`` now are passed over: another may have taken them over by the next time.
        """
        chunk: list[str] = []
        passed: list[str] = []
        while self._line and len(chunk) < self._chunk:
            seen = self._seen[self._line[0]]
            # By time only when all had their turn: to read them may take longer than a ROUND.
            done = now - seen < ROUND if self.baffled else seen >= self.began
            if done:
                break
            key = self._line.popleft()
            passed.append(key)
            if key not in own:
                chunk.append(key)
        if not chunk and not self.baffled:
            self.baffled = now
        self.looked = now
        self._line.extend(passed)
        self._seen.update(dict.fromkeys(passed, now))
        return chunk

    def again(self, key: str) -> None:
        """This block may have more: look at it first the next time."""
        self._line.remove(key)
        self._line.appendleft(key)
        self._seen[key] = -1

    def over(self, now: int) -> bool:
        """Whether all blocks were looked at again since they had nothing, and for long enough."""
        patient = bool(self.baffled) and now - self.baffled >= PATIENCE
        return patient and (not self._line or self._seen[self._line[0]] >= self.baffled)


def is_of(pool: Pool, key: str) -> bool:
    """Whether a key is that of a block which the pool cuts."""
    try:
        return pool.cuts(keys.cidr_of(key))
    except ValueError:  # no block's key
        return False


def free_in(ledger: Ledger, image: BlockRecord, now: Now) -> list[int]:
    """The ordinals of another node's block that this node could have, the one that has been free the longest first."""
    block = Block(str(image.cidr), ledger.node, ledger.reserve_handle)
    block.merge(image, b"", 0)
    block.note_cooled(now, ledger.settings.config.cooldown * SECOND)
    return supply.reservable(ledger, block, image, waiting=True)


def reclaimable(image: BlockRecord, now: Now) -> bool:
    """Whether a block may be taken over: nobody has an address of it, and its owner has had it for a while."""
    if not image.empty:
        return False
    if image.affinity is None:
        return True
    old = image.claimed_at is None or now.unix - image.claimed_at >= RECLAIM_AGE
    return old and image.affinity.startswith(keys.host_affinity(""))


def borrow(ledger: Ledger, known: Known, found: Record, ordinals: Sequence[int], now: Now) -> Sequence[Change]:
    """The change set that reserves free ordinals of a block, whoever's it is, for this node.

    ``found`` is the block as it was read. Raises RecordError if it cannot be understood, ValueError if somebody has one
    of the ordinals; whether one that is cooling has done so for long enough is the caller's to know (``free_in``).
    """
    image = BlockRecord(found.value)
    for ordinal in ordinals:
        owner = image.owner(ordinal)
        if owner is not None and not owner.released_at:
            raise ValueError(f"cannot reserve ordinal {ordinal} of {image.cidr}: {owner.handle or 'somebody'} has it")
        if owner is not None:
            image.free(ordinal)
    image.take(set(ordinals), reserve_attribute(ledger, image, now.unix))
    handle_key = keys.handle_key(ledger.reserve_handle)
    handle = known.handle(ledger.reserve_handle)
    handle.set(str(image.cidr), image.count(ledger.reserve_handle))
    return (
        Change(handle_key, handle.encode(), known.revision(handle_key)),
        Change(found.key, image.encode(), found.revision),
    )


def take_over(
    ledger: Ledger, known: Known, pool: Pool, found: Record, image: BlockRecord, now: Now
) -> Sequence[Change]:
    """The change set that claims an empty block of another node, or of none, anew; empty: it has no address to give.

    The other's affinity must be in ``known``. It goes last: one that is left over is repaired by whoever meets it.
    """
    changes = claim(ledger, known, pool, image.cidr, now, revision=found.revision)
    if not changes or image.affinity is None:
        return changes
    key = affinity_key_of(image)
    return (*changes, Change(key, None, known.revision(key)))


def affinity_key_of(image: BlockRecord) -> str:
    """The key of the affinity that goes with a host's block."""
    return keys.affinity_key((image.affinity or "").removeprefix(keys.host_affinity("")), image.cidr)
