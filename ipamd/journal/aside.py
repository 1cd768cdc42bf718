"""State files that were set aside: renamed beside ``state``, never overwritten, never deleted by ipamd.

``state.damaged-<time>`` could not be read. They are evidence, and an operator's to remove.

Imports of ipamd only ``core`` and this folder. Order of calls: before ``Journal.open``, or after ``Journal.close``.
"""

import os
import time
from pathlib import Path

from ipamd.journal.directory import sync_directory, take_lock, unusable

_SEPARATOR = "-"
_REASONS = ("damaged",)


def set_aside(directory: Path, reason: str) -> Path:
    """Rename the state file for one of the module's reasons, so that a new one can be made; returns its new path.

    Raises JournalBusyError, and JournalError if it cannot be renamed.
    """
    lock = take_lock(directory)
    try:
        kept = _unused(directory / f"state.{reason}{_SEPARATOR}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        (directory / "state").rename(kept)
        sync_directory(directory)
    except OSError as error:
        raise unusable(directory, error) from error
    finally:
        os.close(lock)
    return kept


def aside(directory: Path) -> list[str]:
    """The names of the state files that were set aside in a directory and are still there, in order."""
    starts = tuple(f"state.{reason}{_SEPARATOR}" for reason in _REASONS)
    try:
        return sorted(path.name for path in directory.iterdir() if path.name.startswith(starts))
    except OSError:
        return []


def _unused(path: Path) -> Path:
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}.{number}")
    return found
