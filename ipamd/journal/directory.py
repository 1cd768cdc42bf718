"""The state directory: made if absent, used by one process at a time, its names made durable.

Imports nothing of ipamd but the errors of this folder. Order of calls: ``take_lock`` first.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from ipamd.journal.errors import JournalBusyError, JournalError


def take_lock(directory: Path) -> int:
    """Make the directory if needed and take its lock: an open descriptor, of a file that names this process.

    The lock ends with the descriptor, whatever the process dies of. Raises JournalBusyError, JournalError.
    """
    path = directory / "lock"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unusable(directory, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(fd, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        if isinstance(error, BlockingIOError):
            raise JournalBusyError(
                f"cannot use {directory}: another ipamd (pid {holder}) uses it; stop that one first"
            ) from None
        raise unusable(directory, error) from error
    with suppress(OSError):  # a full disk: the pid is only a courtesy
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def sync_directory(directory: Path) -> None:
    """Make what was created and renamed in it survive the loss of power; raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def unusable(directory: Path, error: OSError) -> JournalError:
    """The error for a directory that refuses to be read or written."""
    return JournalError(
        f"cannot use {directory}: {error.strerror}: {error.filename or directory}; check the directory's owner and mode"
    )
