"""State files that were set aside: renamed beside ``state``, never overwritten, never deleted by ipamd.

``state.damaged-<time>`` could not be read, ``state.cluster-<clusterGUID>`` is of another cluster than the store now is.
They are evidence, and an operator's to remove.

Imports of ipamd only ``core`` and this folder. Order of calls: before ``Journal.open``, or after ``Journal.close``.
"""

import os
import re
import time
from pathlib import Path

from ipamd.journal.directory import sync_directory, take_lock, unusable

_DAMAGED, _CLUSTER = "state.damaged-", "state.cluster-"


def set_aside_damaged(directory: Path) -> Path:
    """Rename a state file that cannot be read, so that a new one can be made; returns its new path.

    Raises JournalBusyError, and JournalError if it cannot be renamed.
    """
    return _set_aside(directory, _DAMAGED + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))


def set_aside_of_cluster(directory: Path, guid: str) -> Path:
    """Rename a state file that is of another cluster than the store, whose ``clusterGUID`` is given; as above."""
    return _set_aside(directory, _CLUSTER + re.sub(r"[^0-9A-Za-z-]", "_", guid)[:64])


def _set_aside(directory: Path, name: str) -> Path:
    lock = take_lock(directory)
    try:
        kept = _unused(directory / name)
        (directory / "state").rename(kept)
        sync_directory(directory)
    except OSError as error:
        raise unusable(directory, error) from error
    finally:
        os.close(lock)
    return kept


def aside(directory: Path) -> list[str]:
    """The names of the state files that were set aside in a directory and are still there, in order."""
    try:
        return sorted(path.name for path in directory.iterdir() if path.name.startswith((_DAMAGED, _CLUSTER)))
    except OSError:
        return []


def _unused(path: Path) -> Path:
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}.{number}")
    return found
