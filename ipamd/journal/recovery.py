"""What a found state file may be used for: decided from its bytes alone, before anything is changed.

While the machine runs, everything ``write`` took is in the file whoever was killed, so a file must hold all that
its commit slots say; beyond that a crash leaves whole records (written, not yet committed) and at most one that
breaks off. After a reboot the machine may have lost power, which leaves a file without its unsynced end, in which
the last pages may be anything; the slots say nothing then, as they may have reached the disk before the records.

So a missing or damaged end is cut off only after a reboot, only beyond what the header calls durable, and only if
no whole record follows: power cuts take ends, holes are a failing disk or a foreign hand. A record is looked for at
every offset, because a damaged head leaves no way to the next one. Whatever is refused is left as it is.

Pure. May import of ipamd only ``core``.
"""

from msgspec import Struct

from ipamd.core.facts import Fact
from ipamd.journal.errors import JournalDamagedError, JournalForeignError, JournalVersionError
from ipamd.journal.format import (
    HEADER_SIZE,
    Fault,
    Header,
    HeaderError,
    NewerHeaderError,
    Problem,
    Scan,
    committed_length,
    decode_header,
    next_record,
    scan,
)

_START_OVER = (
    "keep it for a report and begin a new one: what was given out and is not yet in the store is known to this one only"
)
_OTHER_VERSION = "start the ipamd that wrote it, or drain the node with that one and move the file away"


class Recovered(Struct, frozen=True):
    """A usable file: its header and facts, how many records, and how much of it to keep (``end``, bytes)."""

    header: Header
    facts: list[Fact]
    records: int
    end: int
    missing: int
    """Committed bytes that are not in the file, or are to be cut: lost with the machine's power."""
    rebooted: bool
    earlier: int
    """How many of the facts are of earlier boots: what they say of CLOCK_BOOTTIME means nothing in this one."""


def recover(data: bytes, node: str, boot: str, path: str) -> Recovered:
    """Decide about the file's bytes; ``path`` is for the texts.

    Raises JournalDamagedError, JournalForeignError, JournalVersionError.
    """
    header = _header(data, path)
    if header.node != node:
        raise JournalForeignError(
            f"cannot use the state file {path}: it belongs to node {header.node!r} and this is node {node!r}; set the"
            " node's name back, or, if it was renamed on purpose and has no pods left, move the file away"
        )
    committed = committed_length(data)
    rebooted = header.boot != boot
    found = _after_reboot(data, header, path) if rebooted else _same_boot(data, committed, path)
    missing = max(0, (committed or 0) - found.end)
    earlier = len(found.facts) if rebooted else len(scan(data, HEADER_SIZE, header.earlier).facts)
    return Recovered(header, found.facts, found.records, found.end, missing, rebooted, earlier)


def _header(data: bytes, path: str) -> Header:
    try:
        return decode_header(data)
    except NewerHeaderError as error:
        raise JournalVersionError(f"cannot read the state file {path}: {error}; {_OTHER_VERSION}") from None
    except HeaderError as error:
        raise _damaged(path, str(error)) from None


def _same_boot(data: bytes, committed: int | None, path: str) -> Scan:
    if committed is None:
        raise _damaged(path, "neither of its commit slots is good")
    if len(data) < committed:
        raise _damaged(path, f"it ends at byte {len(data)} and {committed} were committed")
    first = scan(data, HEADER_SIZE, committed)
    if first.problem is not None:
        raise _refusal(path, first.problem)
    late = scan(data, committed)
    if late.problem is not None and late.problem.fault is not Fault.TORN:
        raise _refusal(path, late.problem)
    return Scan(first.facts + late.facts, first.records + late.records, late.end, None)


def _after_reboot(data: bytes, header: Header, path: str) -> Scan:
    if len(data) < header.durable:
        raise _damaged(path, f"it ends at byte {len(data)} and {header.durable} were on the disk before the reboot")
    found = scan(data)
    problem = found.problem
    if problem is None:
        return found
    if problem.fault is Fault.UNKNOWN:
        raise _refusal(path, problem)
    if problem.offset < header.durable:
        raise _damaged(path, f"{problem.cause}, in what was on the disk before the reboot")
    follower = next_record(data, problem.offset)
    if follower is not None:
        raise _damaged(path, f"{problem.cause}, and whole records follow from byte {follower} on")
    return found


def _refusal(path: str, problem: Problem) -> JournalDamagedError | JournalVersionError:
    if problem.fault is Fault.UNKNOWN:
        return JournalVersionError(f"cannot read the state file {path}: {problem.cause}; {_OTHER_VERSION}")
    return _damaged(path, problem.cause)


def _damaged(path: str, cause: str) -> JournalDamagedError:
    return JournalDamagedError(f"cannot read the state file {path}: {cause}; {_START_OVER}")
