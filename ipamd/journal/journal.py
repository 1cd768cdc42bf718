"""The journal: the facts of this node's ledger in ``<state directory>/state``, appended before each reply.

Order of calls: ``Journal.open`` (blocking: before anything is served), then ``append``, ``sync`` and ``checkpoint`` in
any mixture from one Trio run, then ``close``. ``append`` is synchronous, so that deciding and recording a request is
one step with no other task in between; what was appended survives the death of the process. ``sync`` makes it survive
the loss of power too: one ``fdatasync`` for all who wait.

A checkpoint writes a new file (``state.new``) in a thread while appends go on in the old one; what they add is added
to the new file as well, and then it is renamed over the old. The last bytes are added in the same step as the rename,
so at every instant ``state`` holds everything. While the new file catches up no ``sync`` may complete, as what it
promised would be in the old file only: it waits, and is then satisfied by syncing the new file and its name.

``lock`` in the same directory keeps a second process out; it is a file of its own as ``state`` is replaced.

May import of ipamd only ``core`` and this folder; the one module here that uses Trio.
"""

import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import trio
from msgspec import Struct
from msgspec.structs import replace

from ipamd.core.errors import NotDurableError
from ipamd.core.facts import Fact, RangeReleased, Rebooted, Released
from ipamd.journal.directory import sync_directory, take_lock, unusable
from ipamd.journal.errors import JournalWriteError, write_error
from ipamd.journal.format import Header, frame
from ipamd.journal.statefile import StateFile

CHECKPOINT_FLOOR = 1 << 20
"""Bytes appended before a checkpoint is worth its two syncs and its rename; some 3,500 facts, read back in 10 ms."""
CHECKPOINT_FACTOR = 2
"""Times the last checkpoint's size: bounds what is written to 1.5 times what is appended, and the file to 3 times."""

T = TypeVar("T")


class OpenReport(Struct, frozen=True):
    """What opening found: sizes in bytes, duration in ns."""

    created: bool
    rebooted: bool
    """The machine was rebooted since the file was last opened."""
    records: int
    bytes: int
    cut: int
    """What was cut off the end: a record that an interrupted write left, or, after a reboot, a damaged end."""
    missing: int
    """Committed bytes that are gone: only after a reboot."""
    duration: int


class Journal:
    """The open journal; ``Journal.open`` makes one. After ``close`` every call raises JournalWriteError."""

    def __init__(self, directory: Path, lock: int, file: StateFile, floor: int, factor: int) -> None:
        self._path = directory / "state"
        self._lock = lock
        self._file = file
        self._floor = floor
        self._factor = factor
        self._closed = False
        self._users = 0
        self._threads = trio.CapacityLimiter(2)  # its own: a sync must not queue behind other stages' work
        self._late: bytearray | None = None
        self._owed: dict[object, Fact] = {}
        self._left_out = 0
        self._made_up = 0
        self._why = ""
        self._appended = 0
        self._synced = 0
        self._turn_over: trio.Event | None = None
        self._renamed = False
        self._sync_error: OSError | None = None

    @classmethod
    def open(
        cls, directory: Path, node: str, boot: str, *, floor: int = CHECKPOINT_FLOOR, factor: int = CHECKPOINT_FACTOR
    ) -> tuple["Journal", list[Fact], OpenReport]:
        """Open the journal of ``node`` in ``directory``, made if absent; the facts are those to replay, in order.

        Where the machine was booted since any of them, one says so. The file's header remembers the place, not a fact
        in it: a daemon that is killed before it writes anything, or finds the disk full, must not forget.
        ``boot`` is the kernel's boot id; ``floor`` and ``factor``: see ``should_checkpoint``. Blocks for some syncs.
        Raises JournalBusyError, JournalDamagedError, JournalForeignError, JournalVersionError (the file untouched),
        JournalWriteError, and JournalError if the directory cannot be used.
        """
        began = time.perf_counter_ns()
        path, leftover = directory / "state", directory / "state.new"
        lock = take_lock(directory)
        try:
            leftover.unlink(missing_ok=True)
            created = not path.exists()
            if created:
                StateFile.create(leftover, Header(node, boot, time.time_ns(), 0, 0, secrets.token_hex(4)), ()).close()
                leftover.rename(path)
                sync_directory(directory)
            file, found, cut = StateFile.load(path, node, boot)
        except BaseException as error:
            os.close(lock)
            if isinstance(error, OSError):
                raise unusable(directory, error) from error
            raise
        duration = time.perf_counter_ns() - began
        report = OpenReport(created, found.rebooted, found.records, file.end, cut, found.missing, duration)
        facts = found.facts
        if found.earlier:
            facts.insert(found.earlier, Rebooted())
        return cls(directory, lock, file, floor, factor), facts, report

    # --- appending --------------------------------------------------------------------------------------------

    def append(self, facts: Sequence[Fact]) -> None:
        """Write the facts, all or none; on return they survive the death of this process.

        Raises JournalFullError (try again when there is space) and JournalWriteError.
        """
        if self._closed:
            raise self._is_closed("append to")
        facts = (*self._owed.values(), *facts)
        if not facts:
            return
        record = frame(facts)
        self._file.append(record)
        self._owed.clear()
        self._appended += len(record)
        if self._late is not None:
            self._late += record

    def owe(self, facts: Sequence[Fact]) -> None:
        """Write these facts, which already hold and could not be appended, before whatever is appended next.

        A DEL that is repeated as long as the disk is full is owed once, with its later start.
        """
        for fact in facts:
            key = _repeatable(fact) or object()
            earlier = self._owed.pop(key, fact)
            if isinstance(fact, Released) and isinstance(earlier, Released):
                fact = replace(fact, started=max(fact.started, earlier.started))
            self._owed[key] = fact

    @property
    def owing(self) -> bool:
        """Whether facts are owed; ``append(())`` tries to write them."""
        return bool(self._owed)

    def leave_out(self, why: NotDurableError) -> None:
        """Facts of the store's could not be appended: what the file says of its records is too old."""
        self._left_out += 1
        self._why = str(why)

    @property
    def lacking(self) -> bool:
        """Whether facts were left out since the last checkpoint began, which has them or nothing of their records."""
        return self._left_out != self._made_up

    @property
    def in_place(self) -> bool:
        """Whether the file is where it was, and whole; if not, a checkpoint makes it anew."""
        return self._file.is_at(self._path)

    @property
    def instance(self) -> str:
        """The name of this state file and of all that replaced it: another one where the state was lost."""
        return self._file.header.instance

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._file.end

    @property
    def appended(self) -> int:
        """Bytes appended since the last checkpoint (or the file's beginning)."""
        return self._file.end - self._file.header.snapshot

    @property
    def should_checkpoint(self) -> bool:
        """Whether more than ``floor`` bytes and ``factor`` times the last checkpoint's size were appended since.

        Or a sync failed: only a new file ends that.
        """
        if self._sync_error is not None:
            return True
        return self.appended > max(self._floor, self._factor * self._file.header.snapshot)

    # --- the disk ---------------------------------------------------------------------------------------------

    async def sync_whole(self) -> None:
        """``sync`` before a change of the store's records is sent: the file must know what they were.

        Raises JournalWriteError as long as the file is ``lacking``, and what ``sync`` raises.
        """
        self.require_whole()
        await self.sync()

    def require_whole(self) -> None:
        """Raise JournalWriteError if the file is ``lacking``."""
        if self.lacking:
            raise JournalWriteError(f"the state file must be written anew first, as it lacks records: {self._why}")

    async def sync(self) -> None:
        """Wait until all that was appended before the call, or is owed, is on the disk; many share one ``fdatasync``.

        Raises JournalFullError where what is owed still cannot be written, and JournalWriteError: after a failure
        until a checkpoint has made a new file, as the kernel reports a page that it could not write only once.
        """
        if self._closed:
            raise self._is_closed("sync")
        self.append(())
        target = self._appended
        with self._in_use():
            await trio.lowlevel.checkpoint()
            while self._synced < target or self._renamed:  # what is not appended again is in the new file only
                if self._turn_over is not None:
                    await self._turn_over.wait()
                elif self._sync_error is not None:
                    raise write_error("sync the state file", self._sync_error) from self._sync_error
                else:
                    async with self._turn():
                        await self._flush()

    async def _flush(self) -> None:
        """Sync the file and, if it is a new one, its name. Only in one's turn."""
        reach = self._appended
        try:
            await self._in_thread(self._file.sync)
            if self._renamed:
                await self._in_thread(lambda: sync_directory(self._path.parent))
                self._renamed = False
        except OSError as error:
            self._sync_error = error
            raise write_error("sync the state file", error) from error
        self._synced = reach

    # --- checkpoint -------------------------------------------------------------------------------------------

    async def checkpoint(self, facts: Iterable[Fact]) -> None:
        """Replace the file by one with these facts and all that is appended from now on.

        ``facts`` is read to its end before anything else happens, and says what was left out or is owed by then. One
        checkpoint at a time. Raises JournalFullError and JournalWriteError, or is cancelled, with the old file still in
        use or (only the last sync failed) with the new one; either holds everything.
        """
        snapshot, owed, left_out = list(facts), dict(self._owed), self._left_out
        if self._closed:
            raise self._is_closed("checkpoint")
        if self._late is not None:
            raise RuntimeError("cannot checkpoint the journal: a checkpoint is under way; await that one first")
        self._late = bytearray()
        path, old, new = self._path.with_name("state.new"), self._file, None
        with self._in_use():
            try:
                with suppress(
                    OSError
                ):  # the whole directory may have been removed; if it cannot be made, creating fails
                    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                new = await self._in_thread(lambda: StateFile.create(path, old.header, snapshot))
                async with self._turn():
                    await self._catch_up(new, self._late)
                    self._switch(new, path, self._late)
                    self._made_up = left_out
                    self._owed = {key: fact for key, fact in self._owed.items() if owed.get(key) is not fact}
                    with trio.CancelScope(shield=True):
                        await self._in_thread(old.close)  # frees the old file's blocks: too slow for the loop
                    await self._flush()
            finally:
                self._late = None
                if new is not None and new is not self._file:
                    new.close()
                    path.unlink(missing_ok=True)

    async def _catch_up(self, new: StateFile, late: bytearray) -> None:
        # Puts all on the disk that a sync may have promised so far: until the turn is over none can complete.
        records = bytes(late)
        late.clear()

        def work() -> None:
            new.append(records)
            new.sync()

        try:
            await self._in_thread(work)
        except OSError as error:
            raise write_error("sync the new state file", error) from error

    def _switch(self, new: StateFile, path: Path, late: bytearray) -> None:
        if self._closed:
            raise self._is_closed("checkpoint")
        new.append(bytes(late))
        try:
            path.rename(self._path)
        except OSError as error:
            raise write_error("rename the new state file", error) from error
        self._file, self._renamed, self._sync_error = new, True, None
        self._late = None

    # --- threads, turns, the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the file and the lock, at once or when the calls under way are done; nothing is synced."""
        self._closed = True
        if self._users == 0 and self._lock >= 0:
            self._file.close()
            os.close(self._lock)
            self._lock = -1

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._closed:
                self.close()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Be the only one who syncs; wakes those who waited, who then look whether it was done for them."""
        while self._turn_over is not None:
            await self._turn_over.wait()
        over = self._turn_over = trio.Event()
        try:
            yield
        finally:
            self._turn_over = None
            over.set()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)

    @staticmethod
    def _is_closed(verb: str) -> JournalWriteError:
        return JournalWriteError(f"cannot {verb} the journal: it is closed; open it again")


def _repeatable(fact: Fact) -> object:
    """What makes two facts one that say that an attachment was deleted; None for those that say more.

    The first DEL gives up the addresses, those that come after it only say when they began.
    """
    if isinstance(fact, Released) and not fact.places:
        return fact.attachment, fact.handle
    return fact.attachment if isinstance(fact, RangeReleased) else None
