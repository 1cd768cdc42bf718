"""State files that were set aside: kept beside ``state`` and its successor, never overwritten, never deleted by ipamd.

``state.damaged-<time>`` could not be read, ``state.cluster-<clusterGUID>`` is of another cluster than the store now is.
They are evidence, and an operator's to remove.

What is held of host-local ranges goes over to the successor, since no store knows it. The successor is complete and on
the disk before it takes the name ``state``: whenever the process dies, or the disk is full, ``state`` is the old file
or a new one that holds all that could be saved.

Imports of ipamd only ``core`` and this folder. Order of calls: before ``Journal.open``, or after ``Journal.close``.
"""

import errno
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from ipamd.core.clock import THIS_BOOT
from ipamd.core.facts import Fact, RangeAssigned, RangeCursors, RangeReleased
from ipamd.journal.directory import sync_directory, take_lock, unusable
from ipamd.journal.format import Header, salvage
from ipamd.journal.statefile import StateFile

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_DAMAGED, _CLUSTER = "state.damaged-", "state.cluster-"


class Aside(Struct, frozen=True):
    """A file that was set aside, and how many of its bytes say nothing; None: its end may be missing too."""

    path: Path
    unreadable: int | None


def set_aside_damaged(directory: Path, node: str, boot: str) -> Aside:
    """Replace a state file that cannot be read by a new one of the node, made in this boot.

    Raises JournalBusyError, JournalWriteError, and JournalError if the directory cannot be used: nothing was lost.
    """
    return _set_aside(directory, _DAMAGED + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), node, boot)


def set_aside_of_cluster(directory: Path, guid: str, node: str, boot: str) -> Aside:
    """Replace a state file that is of another cluster than the store, whose ``clusterGUID`` is given; as above."""
    return _set_aside(directory, _CLUSTER + re.sub(r"[^0-9A-Za-z-]", "_", guid)[:64], node, boot)


def _set_aside(directory: Path, name: str, node: str, boot: str) -> Aside:
    lock = take_lock(directory)
    state, successor = directory / "state", directory / "state.new"
    try:
        data = state.read_bytes()
        saved = salvage(data)
        header = Header(node, boot, time.time_ns(), 0, 0, secrets.token_hex(4))
        StateFile.create(successor, header, _of_ranges(saved.facts)).close()
        kept = _linked(state) or _unused(directory / name)
        if not kept.exists():
            _keep(state, kept, data)
        sync_directory(directory)
        successor.rename(state)
        sync_directory(directory)
    except OSError as error:
        raise unusable(directory, error) from error
    finally:
        os.close(lock)
    return Aside(kept, saved.unreadable)


def _of_ranges(facts: Iterable[Fact]) -> Iterator[Fact]:
    """Those that say what is held of host-local ranges, which no store knows: only reasons to keep an address.

    Any DEL of this boot ends them; whether they are of an earlier one is not known.
    """
    for fact in facts:
        if isinstance(fact, RangeAssigned):
            yield replace(fact, began=THIS_BOOT)
        elif isinstance(fact, RangeReleased | RangeCursors):
            yield fact


def aside(directory: Path) -> list[str]:
    """The names of the state files that were set aside in a directory and are still there, in order."""
    try:
        return sorted(path.name for path in directory.iterdir() if path.name.startswith((_DAMAGED, _CLUSTER)))
    except OSError:
        return []


def _linked(state: Path) -> Path | None:
    """The name that the file got when the process died between that and the successor's."""
    return next((path for name in aside(state.parent) if (path := state.with_name(name)).samefile(state)), None)


def _keep(state: Path, kept: Path, data: bytes) -> None:
    """Give a file a second name, or where the file system knows none, copy it."""
    try:
        os.link(state, kept)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy = kept.with_name("state.copy")
        fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:  # noqa: PTH123 - of a descriptor
            file.write(data)
            file.flush()
            os.fsync(fd)
        copy.rename(kept)


def _unused(path: Path) -> Path:
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}.{number}")
    return found
