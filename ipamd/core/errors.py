"""What a request can be refused with: one exception, carrying its CNI error code.

Codes below 100 are the CNI specification's (section "Error" of the specification 1.1.0), those from 100 up are
ours and listed in docs/errors.md.
"""

from enum import IntEnum


class Code(IntEnum):
    """A CNI error code, as it appears in the ``code`` field of an error object."""

    INCOMPATIBLE_VERSION = 1
    CONTAINER_UNKNOWN = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    UNDECODABLE = 6
    INVALID_CONFIGURATION = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    NO_POOL = 100
    """No pool serves the request."""
    EXHAUSTED = 101
    """The pools that serve the request have no free address here, and no free block."""
    BLOCK_LIMIT = 102
    """The node may not claim another block."""
    DELETED = 103
    """The attachment was deleted after this ADD began."""
    ADDRESS_TAKEN = 104
    """The requested address is in use."""
    ADDRESS_NOT_ASSIGNABLE = 105
    """Nothing that serves the request has the requested address to give."""
    RANGE_EXHAUSTED = 106
    """A host-local range set has no free address."""
    POD_UNKNOWN = 107
    """Kubernetes has no such pod."""
    MISMATCH = 108
    """CHECK: the attachment's addresses are not those it was answered with."""


class NotDurableError(Exception):
    """Facts could not be written where they survive a crash; the text says why and what to do."""


class RefusedError(Exception):
    """A request that cannot be served, with the words for whoever reads the pod's events.

    ``msg`` says "cannot <verb> <object>: <cause>; <what to do>"; ``details`` may add what was tried.
    """

    def __init__(self, code: Code, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details
