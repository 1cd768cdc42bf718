"""One open state file: written at its end, committed through its header page.

The order of an append: ``pwrite`` of the whole record, then of one of the two commit slots in the header page. Both
are in the page cache, so both survive the death of the process; in between, the record is whole but not committed,
and recovery takes it. A store into a mapping of the page would save 0.6 us, and be a SIGBUS instead of an error
where a full disk cannot copy a block (btrfs).

The disk: one ``fdatasync`` covers records and slot. It may write the slot first; hence after a reboot the slots
count for nothing. Only what has been synced may be called durable, so the header is written after the records are
on the disk.

Imports of ipamd only ``core`` and this folder. Order of calls: ``create`` or ``load``, then anything, then ``close``;
one caller at a time, from any thread.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from ipamd.core.facts import Fact
from ipamd.journal.errors import JournalWriteError, write_error
from ipamd.journal.format import HEADER_SIZE, SLOTS, Header, encode_page, encode_slot, frames
from ipamd.journal.recovery import Recovered, recover


class StateFile:
    """A file that ends at ``end`` (bytes). After a failed write it is as it was before, or refuses all further ones."""

    __slots__ = ("_broken", "_fd", "_slot", "end", "header")

    def __init__(self, fd: int, header: Header, end: int) -> None:
        """Take over the descriptor of a file whose slots both say ``end``."""
        self._fd = fd
        self._slot = 0
        self._broken = False
        self.header = header
        self.end = end

    @classmethod
    def create(cls, path: Path, header: Header, facts: Iterable[Fact]) -> "StateFile":
        """Make a file with these facts and sync it; its header says where they end.

        Replaces a leftover at ``path``. Raises JournalWriteError, and leaves nothing behind.
        """
        try:
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise write_error(f"create {path}", error) from error
        try:
            end = HEADER_SIZE
            for record in frames(facts):
                _write(fd, record, end)
                end += len(record)
            header = msgspec.structs.replace(header, snapshot=end, durable=end, earlier=0)
            _write(fd, encode_page(header, end), 0)
            os.fsync(fd)
            return cls(fd, header, end)
        except BaseException as error:
            os.close(fd)
            path.unlink()
            if isinstance(error, OSError):
                raise write_error(f"write {path}", error) from error
            raise

    @classmethod
    def load(cls, path: Path, node: str, boot: str) -> tuple["StateFile", Recovered, int]:
        """Open a file that is there: cut off what a crash left at its end, and make the rest durable.

        The integer is how many bytes were cut off. Raises what ``recover`` raises, with the file untouched;
        OSError if it cannot be read, JournalWriteError if it cannot be written.
        """
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            data = path.read_bytes()
            found = recover(data, node, boot, str(path))
            earlier = found.end if found.rebooted else found.header.earlier
            header = msgspec.structs.replace(found.header, boot=boot, durable=found.end, earlier=earlier)
            try:
                os.ftruncate(fd, found.end)
                os.fdatasync(fd)
                _write(fd, encode_page(header, found.end), 0)
                return cls(fd, header, found.end), found, len(data) - found.end
            except OSError as error:
                raise write_error(f"write {path}", error) from error
        except BaseException:
            os.close(fd)
            raise

    def append(self, records: bytes) -> None:
        """Write whole records at the end and commit them; raises JournalWriteError."""
        if self._broken:
            raise JournalWriteError(
                "cannot append to the state file: an earlier write broke off and could not be undone; restart ipamd"
            )
        try:
            _write(self._fd, records, self.end)
            _write(self._fd, encode_slot(self.end + len(records)), SLOTS[self._slot])
        except OSError as error:
            self._undo()
            raise write_error("append to the state file", error) from error
        self.end += len(records)
        self._slot ^= 1

    def _undo(self) -> None:
        try:
            os.ftruncate(self._fd, self.end)
        except OSError:
            self._broken = True  # the next record would stand behind a broken one

    def is_at(self, path: Path) -> bool:
        """Whether ``path`` still names this file, with all that was written: nobody removed, replaced or cut it."""
        own = os.fstat(self._fd)
        try:
            found = path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino) and own.st_size >= self.end

    def sync(self) -> None:
        """Wait until all that was appended is on the disk; raises OSError."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Let go of the file, without syncing it."""
        os.close(self._fd)


def _write(fd: int, data: bytes, offset: int) -> None:
    # A full disk takes the first part and says why only when asked to take the rest.
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)
