"""What can go wrong with the state file: one class for each thing that a caller does about it.

Texts are for operators: "cannot <verb> <object>: <cause>; <what to do>". Imports of ipamd only ``core``.
"""

import errno

from ipamd.core.errors import NotDurableError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class JournalError(Exception):
    """The state file cannot be used as it was asked to be. Nothing was changed."""


class JournalBusyError(JournalError):
    """Another process uses the state directory."""


class JournalDamagedError(JournalError):
    """The file is not what this node last wrote, nor what a crash leaves of it."""


class JournalForeignError(JournalError):
    """The file is another node's."""


class JournalVersionError(JournalError):
    """The file was written by an ipamd that knows more than this one."""


class JournalWriteError(JournalError, NotDurableError):
    """The facts are not in the file (or, from ``sync``, not on the disk)."""


class JournalFullError(JournalWriteError):
    """The same, for want of space; worth trying again once there is some."""


def write_error(action: str, error: OSError) -> JournalWriteError:
    """The error for a system call that refused to write; ``action`` is "<verb> <object>"."""
    if error.errno in _NO_SPACE:
        return JournalFullError(f"cannot {action}: {error.strerror}; make room on its file system (or raise the limit)")
    return JournalWriteError(f"cannot {action}: {error.strerror}; check the disk, the mount and the permissions")
