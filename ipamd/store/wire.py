"""Reads and commits of records as messages, for who reaches the store through the daemon: MessagePack, both ways.

One request is one page: what is left of it is asked for again, from ``next`` on. Each page is of one revision; those
of one read need not be of the same. The limits keep every answer small beside what the daemon is there for.

May import of ipamd only ``store.base``.
"""

from msgspec import Struct

from ipamd.store.base import Change, KeyRange, Record

ROOT, END = "/calico/", "/calico0"
"""Only keys from the one and before the other are served."""
KEYS = 500
"""Keys in one request, and in one page of a range."""
BYTES = 1 << 20
"""After so many bytes of values a page ends; one record may be larger."""
CONTENT_TYPE = "application/msgpack"


class ReadRequest(Struct, frozen=True):
    """Records by their keys, or those of a range of keys; ``names_only``: only which keys the range has."""

    keys: tuple[str, ...] = ()
    window: KeyRange | None = None
    names_only: bool = False


class Page(Struct, frozen=True):
    """Records (or names of keys) in the order asked for; ``next``: the key from which to ask for the rest, else ""."""

    revision: int
    records: tuple[Record, ...] = ()
    names: tuple[str, ...] = ()
    next: str = ""


class CommitRequest(Struct, frozen=True):
    """See ``base.Store.commit``; answered with an ``Outcome``."""

    alternatives: tuple[tuple[Change, ...], ...]
    window: KeyRange | None = None
