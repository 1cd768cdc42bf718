"""One block of this node: what the store holds, and what this node wants it to hold.

The committed image (``record`` at ``revision``) comes from the store, whoever wrote it. Beside it stand this node's
wishes: ``desired`` (the ordinals its attachments hold), ``releasing`` (ordinals given up, and by whom) and
``withdrawn`` (reserved ordinals about to be given back). ``stranded`` is the reserve of another instance of this node:
nobody's to hand out. The flush writes an image in which the wishes are true; ``merge`` compares a new image with them.
So a lost reply, a conflict and a replay after a crash are one case.
A transaction that was given up may arrive late, as long as the image is the one it expects: ``_adrift`` remembers who
was given up meanwhile, to overrule it. A store that was set back is overruled in the same way.

``undone`` are the ordinals of living attachments that the store had under their names and somebody freed there;
``robbed`` says that somebody freed reserved ones.
``adopted`` and ``tunnels`` are what this node's workloads and tunnels hold by the image alone, by handle.
``others_bits`` is a bitmap of what the image gives to anybody but this node's reserve, be it only to cool.

With a cooldown set, what was given up cools first: the store holds it as released at a time, and it is nobody's.
``cooled`` are the ordinals that have done so for long enough: whoever writes the block next frees them.

An ordinal may be handed out only while the committed image has it allocated to this node's reserve handle and no
wish stands against it: ``reserve_bits``. The bitmap is the truth, ``_queue`` the order (first in, first out).
Ordinals that somebody asked for by address are ``wanted``; once the image gives them to the reserve handle they are
``kept`` for who asked, out of the line.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress

from ipamd.core.address import format_address, parse_cidr
from ipamd.core.clock import Now
from ipamd.core.facts import Assigned, Place
from ipamd.core.keys import host_affinity, is_reserve_of
from ipamd.core.records import BlockRecord, Owner, parse_rfc3339
from ipamd.core.tunnel import is_handle


class Block:
    """A block in memory. ``cidr`` is its text, as in facts; see the module for the rest."""

    __slots__ = (
        "_addresses",
        "_adrift",
        "_cooling_since",
        "_queue",
        "_untouched",
        "adopted",
        "cidr",
        "contested",
        "cooled",
        "cooling",
        "desired",
        "doubtful",
        "idle_since",
        "kept_bits",
        "net",
        "node",
        "others_bits",
        "owned",
        "record",
        "releasing",
        "reserve_bits",
        "reserve_handle",
        "revision",
        "robbed",
        "stranded",
        "tunnels",
        "undone",
        "unflushed",
        "unreserved_bits",
        "value",
        "wanted_bits",
        "withdrawn",
    )

    def __init__(self, cidr: str, node: str, reserve_handle: str) -> None:
        self.cidr = cidr
        self.net = parse_cidr(cidr)
        self.node = node
        self.reserve_handle = reserve_handle
        self.revision = 0
        self.value = b""
        self.record: BlockRecord | None = None
        self.owned = False
        self.reserve_bits = 0
        self.unreserved_bits = 0
        self.others_bits = 0
        self.withdrawn = 0
        self.wanted_bits = 0
        self.kept_bits = 0
        self.desired: dict[int, Assigned] = {}
        self.unflushed: dict[int, Assigned] = {}
        self.contested: dict[int, str] = {}
        self.releasing: dict[int, str] = {}
        self.adopted: dict[str, list[int]] = {}
        self.tunnels: dict[str, list[int]] = {}
        self.cooling: dict[int, str] = {}
        self.cooled = 0
        self.stranded: dict[int, str] = {}
        self.undone: set[int] = set()
        self.robbed = False
        self.idle_since: int | None = None
        self.doubtful = False
        self._untouched = 0
        self._adrift: dict[int, str] = {}
        self._cooling_since: dict[str, int] = {}
        self._queue: deque[int] = deque()
        self._addresses: dict[int, str] = {}

    # --- what the store says ----------------------------------------------------------------------------------

    def merge(self, record: BlockRecord | None, value: bytes, revision: int) -> None:
        """Take in the committed image as of ``revision``; None: the block is not there, or ``value`` says deleted."""
        free_before = [] if self.record is None else self.record.unallocated
        was_owned = self.owned
        # A new image: whatever was under way expects the one before. The same image told again proves nothing, and nor
        # does the first after a start from a state file without one, as the disk was full: it may be what is expected.
        first = (self.revision, self.value) == (0, b"")
        overtaken = not first and (revision, value) != (self.revision, self.value)
        newer = revision > self.revision  # else the store's history was set back
        self.record, self.value, self.revision = record, value, revision
        self.doubtful = self.doubtful and not overtaken
        flushed = self.desired.keys() - self.unflushed.keys() - self.contested.keys()
        self.owned = record is not None and record.affinity == host_affinity(self.node)
        ours, self.unreserved_bits = self._sort_ordinals()
        if overtaken and record is not None:
            self._adrift = {o: handle for o, handle in self._adrift.items() if self._holder(o) == handle}
        if newer:
            self.undone |= flushed
            self.robbed |= bool((self.reserve_bits | self.kept_bits) & ~ours)
        self.undone &= self.unflushed.keys()
        self.withdrawn &= ours
        self._resolve_releases()
        usable = ours & ~self._wished()
        self.kept_bits = usable & self.wanted_bits
        usable &= ~self.wanted_bits
        kept = usable & self.reserve_bits
        self.reserve_bits = usable
        if usable != kept:  # what comes back goes to the end: its old place in the line is dropped
            self._queue = deque(ordinal for ordinal in self._queue if kept >> ordinal & 1)
            self._queue.extend(self._in_order(usable & ~kept, free_before))
        if was_owned and self.ownerless:  # its pool or this node was deleted: no pod gets anything new from it
            self.withdraw(ordinals_of(self.reserve_bits))

    def _sort_ordinals(self) -> tuple[int, int]:
        """Bitmaps of what the image gives our reserve and of what is free; what else follows is made anew."""
        ours = free = 0
        self.others_bits = 0
        self.adopted, self.contested, self.cooling, self.cooled = {}, {}, {}, 0
        self.stranded, self.tunnels = {}, {}
        record = self.record
        if record is None:
            self.unflushed = dict(self.desired)
            return 0, 0
        for ordinal, index in enumerate(record.allocations):
            if index is None:
                free |= 1 << ordinal
                continue
            owner = record.owners[index]
            if owner.handle == self.reserve_handle:
                ours |= 1 << ordinal
                continue
            self.others_bits |= 1 << ordinal
            if owner.released_at:
                self.cooling[ordinal] = owner.released_at
            elif owner.handle == self._adrift.get(ordinal):
                if ordinal not in self.desired:
                    self.releasing[ordinal] = owner.handle
            elif ordinal not in self.desired:
                self._note_other(ordinal, owner)
            elif owner.handle != self.desired[ordinal].handle and not self._is_of_another_instance(owner.handle):
                self.contested[ordinal] = owner.handle
        self.unflushed = {
            o: a for o, a in self.desired.items() if self._holder(o) != a.handle and o not in self.contested
        }
        return ours, free

    def _note_other(self, ordinal: int, owner: Owner) -> None:
        """Note who has an ordinal by the image that no attachment here is known to hold."""
        if self._is_of_another_instance(owner.handle):
            self.stranded[ordinal] = owner.handle
        elif is_handle(owner.handle, self.node) and self.releasing.get(ordinal) != owner.handle:
            self.tunnels.setdefault(owner.handle, []).append(ordinal)
        elif self._adoptable(owner) and self.releasing.get(ordinal) != owner.handle:
            self.adopted.setdefault(owner.handle, []).append(ordinal)

    def _is_of_another_instance(self, handle: str) -> bool:
        """Whether it is this node's reserve under another state file's name."""
        return handle != self.reserve_handle and is_reserve_of(handle, self.node)

    def _adoptable(self, owner: Owner) -> bool:
        """Whether it is a workload of this node that this ledger knows only from the store (another plugin's, say)."""
        if not owner.handle or "type" in owner.secondary:  # a tunnel address is no workload
            return False
        return owner.node == self.node or (not owner.node and self.owned)

    def _is_here(self, ordinal: int) -> bool:
        """Whether a workload of this node has the ordinal by the image."""
        owner = None if self.record is None else self.record.owner(ordinal)
        return owner is not None and self._adoptable(owner)

    def _resolve_releases(self) -> None:
        # Ours again (the assignment never reached the store) stays until ``settle``: a transaction may be under way.
        if self.record is None:
            return  # the same: one that writes the block again
        for ordinal, handle in list(self.releasing.items()):
            if self._holder(ordinal) not in (handle, self.reserve_handle):
                del self.releasing[ordinal]

    def _holder(self, ordinal: int) -> str | None:
        """The handle that the store's image gives an ordinal to; None if it is nobody's: free, or cooling."""
        owner = None if self.record is None else self.record.owner(ordinal)
        return None if owner is None or owner.released_at else owner.handle

    def _wished(self) -> int:
        bits = self.withdrawn
        for ordinal in self.desired:
            bits |= 1 << ordinal
        for ordinal in self.releasing:
            bits |= 1 << ordinal
        return bits

    def _in_order(self, bits: int, free_before: Sequence[int]) -> list[int]:
        # The record keeps no order among reserved ordinals but the sequence number at which each was reserved; the
        # image before knows which of those reserved together was free the longest.
        sequences = {} if self.record is None else self.record.sequences
        waited = {ordinal: position for position, ordinal in enumerate(free_before)}
        return sorted(ordinals_of(bits), key=lambda o: (sequences.get(str(o), 0), waited.get(o, 0), o))

    def doubt(self) -> None:
        """A transaction on the block was just made: nothing is known of its outcome until ``doubtful`` ends."""
        in_reserve = self.reserve_bits | self.kept_bits
        self._untouched = in_reserve & self._untouched if self.doubtful else in_reserve
        self.doubtful = True

    def settle(self, *, cooldown: bool = False) -> bool:
        """Take back into the reserve what was given up before the store ever heard of it; whether there was any.

        Not with a ``cooldown``: a pod may have used the address, so the store is told to let it cool. While the block
        is ``doubtful`` only what the transactions in question leave in the reserve, whether they arrive or not: until
        one more change of the block has overtaken them, what they give to a pod may become its own in the store, and
        whoever finds it gone, Calico's garbage collection say, frees it there for everybody.
        """
        settled = False
        for ordinal, handle in list(self.releasing.items()):
            if self.doubtful and not self._untouched >> ordinal & 1:
                continue
            holder = self._holder(ordinal)
            if holder == handle or (holder == self.reserve_handle and self.withdrawn >> ordinal & 1):
                continue
            if cooldown and holder == self.reserve_handle:
                continue
            self._adrift[ordinal] = self.releasing.pop(ordinal)
            if holder == self.reserve_handle:
                self._enqueue(ordinal)
                settled = True
        return settled

    def note_cooled(self, now: Now, cooldown: int) -> None:
        """Work out ``cooled``: what has been cooling for ``cooldown`` (ns).

        The first look at an address tells since when it cools; from then on only the clock that never jumps counts,
        so that neither a release in the future nor a jump makes it cool for longer than ``cooldown`` from that look.
        """
        self.cooled = 0
        self._cooling_since = {at: self._cooling_since.get(at, _started(at, now)) for at in set(self.cooling.values())}
        for ordinal, released_at in self.cooling.items():
            if ordinal not in self.desired and now.boot - self._cooling_since[released_at] >= cooldown:
                self.cooled |= 1 << ordinal

    # --- what this node wants ---------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """How many addresses can be handed out without asking anybody."""
        return self.reserve_bits.bit_count()

    def head(self) -> int | None:
        """The ordinal to hand out next: the one that has been in the reserve the longest."""
        while self._queue:
            if self.reserve_bits >> self._queue[0] & 1:
                return self._queue[0]
            self._queue.popleft()
        return None

    def ready(self, ordinal: int) -> bool:
        """Whether an ordinal can be handed out without asking anybody, to who asked for it."""
        return bool((self.reserve_bits | self.kept_bits) >> ordinal & 1)

    def want(self, ordinal: int) -> None:
        """Somebody waits for this ordinal: nobody else gets it."""
        bit = 1 << ordinal
        self.wanted_bits |= bit
        self.kept_bits |= self.reserve_bits & bit
        self.reserve_bits &= ~bit

    def unwant(self, ordinal: int) -> None:
        """Nobody waits for this ordinal any more: if it is in the reserve, it is the last in the line."""
        bit = 1 << ordinal
        self.wanted_bits &= ~bit
        if self.kept_bits & bit:
            self.kept_bits &= ~bit
            self._enqueue(ordinal)

    def line(self) -> list[int]:
        """The reserved ordinals in the order in which they will be handed out."""
        return list(dict.fromkeys(ordinal for ordinal in self._queue if self.reserve_bits >> ordinal & 1))

    def assign(self, ordinal: int, assigned: Assigned) -> None:
        """An attachment of this node holds the ordinal from now on."""
        self.reserve_bits &= ~(1 << ordinal)
        self.kept_bits &= ~(1 << ordinal)
        # In a replay: an IPReservation withdraws what was wanted, as nobody waits then.
        self.withdrawn &= ~(1 << ordinal)
        if ordinal in self.releasing:  # in a replay, where nobody settles
            self._adrift[ordinal] = self.releasing.pop(ordinal)
        self.desired[ordinal] = assigned
        self.idle_since = None
        holder = self._holder(ordinal)
        if holder == assigned.handle:
            self._unadopt(assigned.handle, ordinal)
        elif holder in (None, self.reserve_handle) or self._is_of_another_instance(holder):
            self.unflushed[ordinal] = assigned
            self.stranded.pop(ordinal, None)
        else:  # only in a replay: somebody's hand had freed it, and another was faster
            self.contested[ordinal] = holder
            self._unadopt(holder, ordinal)

    def restate(self, ordinal: int, assigned: Assigned) -> None:
        """The attachment that holds the ordinal is from now on told of in these words."""
        self.desired[ordinal] = assigned
        if ordinal in self.unflushed:
            self.unflushed[ordinal] = assigned

    def unassign(self, ordinal: int) -> None:
        """Undo ``assign``, in the same step: the ordinal is the next to be handed out, or the store's again."""
        assigned = self.desired.pop(ordinal)
        self.unflushed.pop(ordinal, None)
        if self._holder(ordinal) == assigned.handle:
            table = self.tunnels if is_handle(assigned.handle, self.node) else self.adopted
            table.setdefault(assigned.handle, []).insert(0, ordinal)
        elif self.wanted_bits >> ordinal & 1:
            self.kept_bits |= 1 << ordinal
        else:
            self.reserve_bits |= 1 << ordinal
            with suppress(ValueError):
                self._queue.remove(ordinal)
            self._queue.appendleft(ordinal)

    def release(self, ordinal: int, handle: str) -> None:
        """The ordinal was given up by ``handle``; nobody may have it before the store knows."""
        assigned = self.desired.get(ordinal)
        if assigned is not None and assigned.handle != handle:
            if self.contested.get(ordinal) == handle:  # who has it by the store is gone
                self._adrift[ordinal] = self.contested.pop(ordinal)
                self.unflushed[ordinal] = assigned
            return
        self.desired.pop(ordinal, None)
        self.unflushed.pop(ordinal, None)
        self._unadopt(handle, ordinal)
        other = self.contested.pop(ordinal, None)
        if other and self._is_here(ordinal):  # the other may be another plugin's pod on this node
            self.adopted.setdefault(other, []).append(ordinal)
        holder = self._holder(ordinal)
        if holder is not None and assigned is not None and self._is_of_another_instance(holder):
            self.stranded[ordinal] = holder
        # Also if it is free: a transaction that gives it to ``handle`` may be under way. ``settle`` knows.
        if holder in (None, handle, self.reserve_handle):
            self.releasing[ordinal] = handle
            self.reserve_bits &= ~(1 << ordinal)
            self.kept_bits &= ~(1 << ordinal)

    def _unadopt(self, handle: str, ordinal: int) -> None:
        for table in (self.adopted, self.tunnels):
            held = table.get(handle, [])
            if ordinal in held:
                held.remove(ordinal)
            if not held:
                table.pop(handle, None)

    def withdraw(self, ordinals: Iterable[int]) -> None:
        """Never hand these reserved ordinals out again: they are about to be given back."""
        for ordinal in ordinals:
            # In a replay without an image, the first one to come may be of before they were given back.
            if self.record is None or self._holder(ordinal) == self.reserve_handle:
                self.withdrawn |= 1 << ordinal
        self.reserve_bits &= ~self.withdrawn
        self.kept_bits &= ~self.withdrawn

    def _enqueue(self, ordinal: int) -> None:
        if self.wanted_bits >> ordinal & 1:
            self.kept_bits |= 1 << ordinal
            return
        self.reserve_bits |= 1 << ordinal
        with suppress(ValueError):
            self._queue.remove(ordinal)  # its old place in the line
        self._queue.append(ordinal)

    # --- views ------------------------------------------------------------------------------------------------

    def under(self, handle: str) -> list[int]:
        """The ordinals that the image gives to a workload or tunnel of this node, and to no attachment known here."""
        contested = (ordinal for ordinal, other in self.contested.items() if other == handle and self._is_here(ordinal))
        return [*self.adopted.get(handle, ()), *self.tunnels.get(handle, ()), *contested]

    @property
    def unclaimed(self) -> bool:
        """Whether ``under`` finds something for any handle, or may."""
        return bool(self.adopted or self.tunnels or self.contested)

    @property
    def overruled(self) -> dict[int, str]:
        """The ordinals held here that the image gives to somebody who is known to have given them up, by handle."""
        adrift = ((o, handle) for o, handle in self._adrift.items() if o in self.unflushed)
        return {ordinal: handle for ordinal, handle in adrift if self._holder(ordinal) == handle}

    @property
    def dirty(self) -> bool:
        """Whether the store does not yet hold what this node wants."""
        return bool(self.unflushed or self.releasing or self.withdrawn)

    @property
    def empty(self) -> bool:
        """Whether nobody but our reserve holds an ordinal, in the store or by our wish, and none has yet to cool."""
        if self.record is None or self.desired or self.releasing or self.wanted_bits:
            return False
        return not self.others_bits & ~self.cooled

    @property
    def ownerless(self) -> bool:
        """Whether the block is there and no node's: its last address takes it along."""
        return self.record is not None and self.record.affinity is None

    @property
    def relevant(self) -> bool:
        """Whether this node has anything to do with the block."""
        return (
            self.owned
            or bool(self.desired or self.releasing or self.adopted or self.tunnels)
            or self.available > 0
            or self.withdrawn > 0
            or bool(self.stranded)
            or (self.wanted_bits > 0 and self.record is not None)
            or (self.ownerless and bool(self.cooling))  # who released there frees it: no node comes by to do it
        )

    @property
    def telling(self) -> bool:
        """Whether its image says of this node what no start would find out without it, in this file or the store.

        Whom a pod overrules; and of another's block, to which no affinity leads, what is there by the image alone.
        """
        return bool(self.overruled) or (not self.owned and bool(self.adopted or self.tunnels or self.cooling))

    @property
    def held(self) -> int:
        """How many addresses workloads of this node have in it."""
        return len(self.desired) + sum(map(len, self.adopted.values()))

    @property
    def lent(self) -> int:
        """How many addresses of this node's block other nodes have."""
        if self.record is None or not self.owned:
            return 0
        others = {i for i, owner in enumerate(self.record.owners) if owner.node not in ("", self.node)}
        return sum(index in others for index in self.record.allocations)

    def address(self, ordinal: int) -> str:
        """The text of an ordinal's address."""
        text = self._addresses.get(ordinal)
        if text is None:
            text = self._addresses[ordinal] = format_address(self.net.family, self.net.base + ordinal)
        return text

    def place(self, ordinal: int) -> Place:
        """An ordinal of this block, as facts name it."""
        return Place(self.cidr, ordinal)


def _started(released_at: str, now: Now) -> int:
    """When, by the clock that never jumps (ns), an address began to cool, as far as can be told by the other."""
    at = parse_rfc3339(released_at)
    # The text has whole seconds: it may have been at the end of this one.
    return now.boot if at is None else now.boot - max(0, now.unix - at - 1_000_000_000)


def ordinals_of(bits: int) -> list[int]:
    """The positions of the set bits, lowest first."""
    positions = []
    while bits:
        low = bits & -bits
        positions.append(low.bit_length() - 1)
        bits ^= low
    return positions
