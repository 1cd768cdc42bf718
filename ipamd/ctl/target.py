"""What a command speaks to: the daemon, and the records behind it or in a store of their own.

By default both are the daemon's: its socket is that of the configuration, and its store is read and changed through it.
``--etcd-endpoints`` and ``--db`` reach the records directly, with the daemon's own implementations of the store; a
command that needs the daemon itself says so then.

The composition module: the only one of ``ctl`` that knows the stores.
"""

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from ipamd.config import ConfigError, Loaded, default_file, load
from ipamd.ctl.client import Client
from ipamd.ctl.errors import CommandError, UnreachableError, UsageError
from ipamd.store.base import (
    ChangeSet,
    KeyRange,
    Outcome,
    Snapshot,
    StoreRefusedError,
    StoreUnavailableError,
)


class Records(Protocol):
    """The part of ``store.base.Store`` that commands need."""

    name: str

    async def read(self, keys: Sequence[str], prefixes: Sequence[str] = ()) -> Snapshot:
        """Records of the keys and below the prefixes."""

    async def list_keys(self, window: KeyRange) -> tuple[int, tuple[str, ...]]:
        """The existing keys of a window."""

    async def commit(self, *alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        """Commit the first change set all of whose expectations hold."""

    async def aclose(self) -> None:
        """Let go of connections and files."""


class Target(Struct, frozen=True):
    """What the command line says of it; ``etcd`` has the values of the flags ``--etcd-...`` by their keys' paths."""

    socket: str | None = None
    config: str | None = None
    db: str | None = None
    etcd: Mapping[str, str] = {}

    @property
    def direct(self) -> bool:
        """Whether the records are reached without the daemon."""
        return self.db is not None or "etcd.endpoints" in self.etcd

    def daemon(self) -> Client:
        """The daemon. Raises UsageError if the command line names a store instead."""
        if self.direct:
            raise UsageError(
                "cannot ask the daemon: the command line names a store; leave out --db and --etcd-endpoints"
            )
        return Client(Path(self.socket) if self.socket else self._load().config.socket)

    @asynccontextmanager
    async def records(self) -> AsyncIterator[Records]:
        """The records. Raises, also for whatever is done with them, UnreachableError and CommandError."""
        with in_words():
            if self.db is not None:
                with _locked(Path(self.db)) as path:
                    from ipamd.store.embedded import EmbeddedStore

                    async with _closing(EmbeddedStore(path)) as records:
                        yield records
            else:
                async with _closing(self._etcd() if self.direct else self._relayed()) as records:
                    yield records

    def _relayed(self) -> Records:
        from ipamd.ctl.relayed import RelayedStore

        return RelayedStore(self.daemon())

    def _etcd(self) -> Records:
        from ipamd.opening import open_etcd

        return open_etcd(self._load().config.etcd)

    def _load(self) -> Loaded:
        overrides = dict(self.etcd)
        if self.direct:
            overrides["store"] = "etcd"
        try:
            return load(overrides, os.environ, Path(self.config) if self.config else default_file())
        except ConfigError as error:
            raise UsageError(str(error)) from error


@contextmanager
def in_words() -> Iterator[None]:
    """Let the store's errors end a command as they should."""
    try:
        yield
    except StoreUnavailableError as error:
        raise UnreachableError(str(error)) from error
    except StoreRefusedError as error:
        raise CommandError(str(error)) from error


@asynccontextmanager
async def _closing(records: Records) -> AsyncIterator[Records]:
    try:
        yield records
    finally:
        await records.aclose()


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Keep daemons away from an embedded store's file, which must be there."""
    from ipamd.host import lock_file

    if not path.is_file():
        raise UnreachableError(f"cannot open the store {path}: there is no such file; name that of embedded.path")
    try:
        lock = lock_file(path)
    except OSError as error:
        raise UnreachableError(
            f"cannot open the store {path}: a running ipamd has it; leave out --db to reach it through the daemon"
        ) from error
    with lock:
        yield path
