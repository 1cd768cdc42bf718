"""The one task that writes to the store: claims blocks, flushes what changed, tops up, gives back.

One transaction at a time, so that group commit comes by itself: what arrives while one is under way goes into the
next. Every transaction is built anew from what the node wants now (``batch``, ``claim``), never from a log: a lost
reply, a conflict and a restart are one case, and cost one re-read.

The writer may import trio, core and store. What it learns goes out through ``record``: a function that makes facts
part of the ledger and of the journal, and wakes the ADDs that wait for addresses.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import trio
from msgspec import Struct

from ipamd.core import keys, supply
from ipamd.core.clock import Now
from ipamd.core.errors import Code, NotDurableError
from ipamd.core.facts import Fact
from ipamd.core.ledger import MAX_STRAYS, Ledger
from ipamd.core.pool import Pool
from ipamd.core.records import handle_blocks
from ipamd.core.requested import tenant
from ipamd.core.reserve import RETRY_AFTER
from ipamd.store import batch, requested
from ipamd.store.base import Change, ChangeSet, Outcome, Store, StoreRefusedError, StoreUnavailableError
from ipamd.store.borrower import Borrower
from ipamd.store.claim import Search
from ipamd.store.claimer import RECONSIDER_AFTER, Claimer
from ipamd.store.draft import Batch, Draft, Limits
from ipamd.store.known import Known, committed, observed
from ipamd.store.recounts import Recounts, short

BACK_OFF = (0.05, 0.5)
"""First and longest wait after a failure (s): the promise is that the store is right within 2 s of its return."""

TICK = 5.0
"""How often reserves decay and idle blocks are looked for when nothing else happens (s)."""

PATIENCE = 10
"""Conflicts in a row that are tried again at once: more are somebody's mistake, and not to be had at full speed."""

HASTE = 0.2
"""The share of the time to gather changes that is taken even if somebody may soon wait for what is written."""

SETTLE = 10_000_000_000
"""How long no block is deleted after a restart or a transaction of unknown outcome (ns).

A claim that was given up, perhaps by a daemon that is dead, may still arrive: it expects that there is no such block.
"""

SHOWN = 5
"""How many addresses a line of the log names."""


class Writing(Struct, frozen=True):
    """Settings: how long to gather changes before a transaction (s), and how large it may grow."""

    linger: float = 0.1
    limits: Limits = Limits()
    quarantine: int = 3_600_000_000_000
    """How long (ns) the reserve of another instance of this node is kept from everybody."""


class Progress(Struct):
    """What the writer did, for metrics and status: counts since the start."""

    transactions: int = 0
    operations: int = 0
    conflicts: int = 0
    failures: int = 0
    claims: int = 0
    flushed_until: int = 0
    """Everything that this node wanted by then is in the store (CLOCK_BOOTTIME, ns)."""
    last_error: str = ""


class Writer:
    """Brings the store to what the ledger wants. ``run`` it in a nursery; ``wake`` it when the ledger changed."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        record: Callable[[Sequence[Fact]], None],
        sync: Callable[[], Awaitable[None]],
        now: Callable[[], Now],
        settings: Writing,
        report: Callable[[str, dict[str, str]], None],
    ) -> None:
        self._ledger, self._store, self._record, self._sync, self._now = ledger, store, record, sync, now
        self._settings, self._report = settings, report
        self._known = Known()
        self._recounts = Recounts()
        self._woken = trio.Event()
        self._hurried = trio.Event()
        self._hastened = trio.Event()
        self._conflicts = 0
        self._doubt: tuple[str, ...] = ()
        self._histories = 0
        self._settled: int | None = None if ledger.blocks or ledger.revision else 0
        """When nothing that was given up can arrive any more (CLOCK_BOOTTIME, ns); None: SETTLE after the next step."""
        self._pause = TICK
        self.borrower = Borrower(ledger, self._known, store, lambda changes: self._send([changes]), record, now, report)
        self._claimer = Claimer(ledger, self._known, store, self._send_claim, record, now, self._tell_supply)
        self.progress = Progress()
        self.committed = trio.Event()
        """Set, and replaced by a new one, whenever the outcome of a transaction became known."""
        self.on_supply: Callable[[], None] = lambda: None

    def wake(self, *, hurry: bool = False) -> None:
        """Say that there may be something to write; ``hurry``: somebody waits for it."""
        self._woken.set()
        if hurry:
            self._hurried.set()
        if hurry or self._hasty():
            self._hastened.set()

    def _hasty(self) -> bool:
        """Whether somebody waits, or may soon: what helps is often the next that happens, not what they wait since."""
        pressed = any(reserve.pressed_until for reserve in self._ledger.reserves.values())
        return self._ledger.haste or pressed or self._waiting()

    async def run(self) -> None:
        """Write for ever. Failures of the store are counted and tried again; nothing else is expected."""
        pause, told = BACK_OFF[0], ""
        while True:
            try:
                more = await self.step()
                pause, told = BACK_OFF[0], ""
                self.progress.last_error = ""
            except (StoreUnavailableError, StoreRefusedError, NotDurableError) as error:
                self.progress.failures += 1
                # That the state file must be written anew first is news only if it cannot be, which takes it a moment.
                lasts = not isinstance(error, NotDurableError) or str(error) == self.progress.last_error
                if lasts and str(error) != told:
                    told = str(error)
                    self._report("cannot write the store", {"error": told})
                self.progress.last_error = str(error)
                await trio.sleep(pause)
                pause = min(pause * 2, BACK_OFF[1])
                continue
            if more:
                await trio.lowlevel.checkpoint()  # requests are answered
            else:
                await self._rest()

    async def step(self) -> bool:
        """Do the most urgent transaction, if any; whether the next should follow at once."""
        self._pause = TICK
        self._settle()  # also while the store does not answer
        if not await self._look_first():
            return False
        self._settle()
        now = self._now()
        if self._settled is None:
            self._settled = now.boot + SETTLE
        if now.boot >= self._settled:
            self._ledger.end_doubt_of_absent()
        self._note_undone(now.boot)
        outlived = supply.outlived(self._ledger, self._settings.quarantine, now.boot)
        if outlived:
            self._record(outlived)
        for reserve in self._ledger.reserves.values():
            reserve.decay(now.boot)
        pauses = requested.pause(self._ledger, now.boot), self._recounts.pause(now.boot)
        self._pause = min([TICK, *(pause for pause in pauses if pause is not None)])
        self.borrower.rest(now.boot)
        self._ledger.haste = False
        draft = batch.gather(self._ledger, self._known, self._settings.limits, now, self._recounts.low)
        if draft is not None:
            done = await self._commit(draft)
            if done and not draft.full:
                self.progress.flushed_until = now.boot
            self._woken.set()
            if done and self._lacks_block(now.boot):  # who flushes all the while must not come too late
                await self._supply_pools(now.boot)
            return draft.full or self._waiting()
        self.progress.flushed_until = now.boot
        if self._ledger.settings.locked:
            return False
        if await self._claimer.claim_wanted() or await self._supply_pools(now.boot):
            return True
        await self.borrower.relieve()
        idle = supply.idle_block(self._ledger, now.boot)
        if idle is not None and (now.boot >= self._settled or self._ledger.draining):
            await self._commit(batch.retire(self._ledger, self._known, idle))
            return True
        return bool(self._ledger.strays)

    def _settle(self) -> None:
        if self._ledger.settle():
            self.on_supply()

    def _tell_supply(self) -> None:
        self.on_supply()  # set later than what calls it is made

    def _note_undone(self, now: int) -> None:
        """Say which living pods' addresses somebody freed in the store, once: they are about to be written again.

        The counts of their handles may yet be lowered, as may the reserve's.
        """
        for block in self._ledger.blocks.values():
            undone, block.undone = sorted(block.undone & block.unflushed.keys()), set()
            self._recounts.expect((block.unflushed[ordinal].handle for ordinal in undone), now)
            if block.robbed:
                block.robbed = False
                self._recounts.expect([block.reserve_handle], now)
            told = [f"{block.address(o)} of {tenant(block.unflushed[o])}" for o in undone[:SHOWN]]
            more = [f"{len(undone) - SHOWN} more"] if len(undone) > SHOWN else []
            if told:
                self._report(
                    "somebody freed addresses of living pods in the store; writing them again",
                    {"addresses": ", ".join(told + more)},
                )

    async def _look_first(self) -> bool:
        """Look at what must be known before anything is decided; whether the store was looked at in full."""
        if not self._ledger.synced:
            return False
        if self._histories != self._ledger.histories:
            self._histories = self._ledger.histories
            self._known.clear()
        if self._doubt:
            await self._look_again()
        if self._ledger.strays:
            await self._find_strays()
        if due := self._recounts.due(self._now().boot):
            await self._recount(due)
        await self._look_for_wanted()
        return self._ledger.synced

    async def _rest(self) -> None:
        with trio.move_on_after(self._pause) as quiet:
            await self._woken.wait()
        if not quiet.cancelled_caught:  # else something is due
            linger = self._settings.linger
            with trio.move_on_after(linger * HASTE):
                await self._hurried.wait()
            with trio.move_on_after(linger - linger * HASTE):
                await self._hastened.wait()
        self._woken, self._hurried, self._hastened = trio.Event(), trio.Event(), trio.Event()

    def _waiting(self) -> bool:
        """Whether an ADD waits for an address, any of a pool or one that it named."""
        return bool(self._ledger.wanted) or any(reserve.waiting for reserve in self._ledger.reserves.values())

    def _lacks_block(self, now: int) -> bool:
        """Whether a block should be claimed."""
        return not self._ledger.settings.locked and any(
            self._ledger.reserve(pool.name, now).closed is None and supply.wants_block(self._ledger, pool, now)
            for pool in self._ledger.pools_in_use()
        )

    # --- one transaction --------------------------------------------------------------------------------------

    async def _commit(self, draft: Draft | Batch) -> bool:
        if draft.before:
            self._record(draft.before)
        with self._in_doubt(draft.blocks):  # from now on, as what is given up meanwhile is in the draft still
            for _portion in draft.write():
                await trio.lowlevel.checkpoint()  # requests are answered
            await self._sync()  # else, after a reboot, this node would hand out what only the store knows to be given
            if self._histories != self._ledger.histories or not self._ledger.synced:
                return False  # the store was set back meanwhile: this is not sent, and all of it is to be read again
            outcome = await self._send([draft.changes])
        if outcome.chosen is None:
            self.progress.conflicts += 1
            self._conflicts += 1
            self._hastened.set()  # what was urgent still is
            self._known.learn((change.key for change in draft.changes), outcome.records)
            for change in draft.changes:
                found = outcome.records.get(change.key)
                if found is not None and found.revision < change.expected:
                    self._ledger.distrust(change.key)  # its history was rolled back
            self._record(observed(draft.changes, outcome))
            if self._conflicts > PATIENCE:
                await trio.sleep(BACK_OFF[1])
        else:
            self._conflicts = 0
            self._known.wrote(draft.changes, outcome.revision)
            self._record(committed(draft.changes, outcome.revision))
        self._announce()
        return outcome.chosen is not None

    async def _send(self, sets: Sequence[Sequence[Change]], search: Search | None = None) -> Outcome:
        self.progress.transactions += 1
        self.progress.operations += sum(map(len, sets))
        self._doubt = tuple({change.key for changes in sets for change in changes})
        with self._in_doubt(self._doubt):
            try:
                outcome = await self._store.commit(*sets, window=search.window if search else None)
            except StoreUnavailableError:
                self._settled = self._now().boot + SETTLE
                raise
        self._doubt = ()
        return outcome

    async def _send_claim(self, sets: Sequence[ChangeSet], search: Search | None) -> Outcome:
        outcome = await self._send(sets, search)
        if outcome.chosen is None:
            self.progress.conflicts += 1
        else:
            self.progress.claims += 1
        return outcome

    @contextmanager
    def _in_doubt(self, changed: Iterable[str]) -> Iterator[None]:
        """Keep the blocks of a transaction, among these keys, in doubt until its outcome is known, or else for ever.

        What an earlier transaction left doubtful stays so: a refusal, be it for a handle, overtakes nothing.
        """
        doubted = self._ledger.doubt(changed)
        unsent: NotDurableError | None = None
        try:
            yield
        except NotDurableError as error:
            unsent = error
        for block in doubted:
            block.doubtful = False
        if unsent is not None:
            raise unsent

    def _announce(self) -> None:
        done, self.committed = self.committed, trio.Event()
        done.set()

    async def _look_again(self) -> None:
        """The outcome of the last transaction is not known: see what became of its records."""
        snapshot = await self._store.read(self._doubt)
        self._known.learn(self._doubt, {record.key: record for record in snapshot.records})
        self._record([fact for fact in snapshot.facts(self._doubt) if keys.is_block(fact.key)])
        self._doubt = ()
        self._announce()

    async def _recount(self, handles: Sequence[str]) -> None:
        """Read what somebody may have lowered; what is wrong goes into the next transaction, and is looked at anew."""
        record_keys = list(map(keys.handle_key, handles))
        found = await self._store.read(record_keys)
        self._known.learn(record_keys, {record.key: record for record in found.records})
        now = self._now().boot
        low = short(self._ledger, self._known, handles)
        for handle in handles:
            self._recounts.looked(handle, now, low=handle in low)

    async def _find_strays(self) -> None:
        """Look up deleted handles: what the store has under them, be it in other nodes' blocks, is released."""
        strays, histories = dict(islice(self._ledger.strays.items(), MAX_STRAYS)), self._ledger.histories
        handles = await self._store.read([keys.handle_key(handle) for handle in strays])
        cidrs = {cidr for record in handles.records for cidr in handle_blocks(record.value)}
        cidrs -= {block.net for block in self._ledger.blocks.values()}
        if cidrs:
            blocks = await self._store.read(sorted(map(keys.block_key, cidrs)))
            self._record(blocks.facts())
        if self._ledger.histories != histories:
            return  # the store was set back meanwhile: all of it is to be looked up again
        for handle, deleted in strays.items():
            del self._ledger.strays[handle]
            facts = self._ledger.unclaimed(deleted.attachment, [handle], deleted.started)
            if facts:
                self._record(facts)

    # --- requested addresses ----------------------------------------------------------------------------------

    async def _look_for_wanted(self) -> None:
        places = requested.unseen(self._ledger, self._now().boot)
        if places:
            self._record(await requested.look(self._store, places))
            await self.borrower.ask_for(requested.judge(self._ledger, places, self._now()))
            self.on_supply()

    # --- claims and loans -------------------------------------------------------------------------------------

    async def _supply_pools(self, now: int) -> bool:
        """Get the pools what they lack; whether to go on at once."""
        if self._ledger.rival:
            return False
        for pool in sorted(self._ledger.pools_in_use(), key=self.borrower.turn):
            if not supply.wants_block(self._ledger, pool, now):
                if await self._claimer.reconsider(pool, now):
                    self.wake()
            elif await self._supply(pool, now):
                return True
        return False

    async def _supply(self, pool: Pool, now: int) -> bool:
        """Get a pool what its blocks cannot give: a block, or addresses of others'; whether to go on at once."""
        reserve = self._ledger.reserve(pool.name, now)
        pause = RETRY_AFTER if reserve.waiting else RECONSIDER_AFTER
        if reserve.closed is None or now - reserve.closed.at >= pause:
            forbidden = supply.forbidden(self._ledger, pool)
            if forbidden:
                self._claimer.close(pool, Code.BLOCK_LIMIT, *forbidden)
            else:
                await self._claimer.claim(pool)
            return True
        if not reserve.waiting or (reserve.refusal is not None and now - reserve.refusal.at < RETRY_AFTER):
            return False
        if not supply.to_borrow(self._ledger, pool, now):
            return False  # there is enough for who waits: they wait for another pool, whose turn it is
        wait = await self.borrower.hunt(pool)
        if wait is not None:
            self._pause = min(self._pause, wait)
            return not wait
        if reserve.tight:
            await self._claimer.claim(pool)  # a block may have come free meanwhile
        if reserve.closed is not None:
            reserve.refusal = reserve.closed.because("no other node's has an address", self._now().boot)
            self.on_supply()
        return True
