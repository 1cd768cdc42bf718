"""Says to the cluster that this host serves this node, and finds out whether another one does too.

Two hosts with one node's name have a reserve each, under the name of its state file: no address of it is handed out
twice. But each takes the other's pods for its own, and would release them one day as leaked. So the host that comes
second yields: it assigns nothing, and releases nothing of which it does not know the pod, as long as the other lives.

The record below ``keys.DAEMONS`` is bound to a lease: a host that died leaves it to expire. One that finds a record of
its own, from before a restart or a reboot, takes it over at once. While the store is away nothing is known of others,
and nobody yields. May import trio, core and store.
"""

from collections.abc import Callable

import msgspec
import trio
from msgspec import Struct

from ipamd.core import keys
from ipamd.core.ledger import Ledger
from ipamd.core.records import MALFORMED, go_json
from ipamd.store.base import Record, Store, StoreRefusedError, StoreUnavailableError
from ipamd.store.hold import Hold

TTL = 90.0
"""Seconds after which a host that says nothing any more is taken for dead."""

PAUSE = TTL / 3
"""Between two words of the one that serves (s): 1,000 nodes are 33 renewals a second, which cost etcd no disk."""

RETRY = 1.0
"""Between two looks while another host serves, or the store does not answer (s)."""

SOON = 0.1
"""How often it is seen whether the store was read (s)."""


class Host(Struct, frozen=True):
    """Who serves a node: the host's name, its machine id ("" if it has none), this boot, and the state file's name.

    ``network`` names its network namespace ("" in a record of ipamd before it did): in one of them a lock keeps a
    second daemon away, so that a record of this boot is a dead one's; from another it may be a living one's.
    """

    host: str
    machine: str
    boot: str
    instance: str
    network: str = ""

    def is_of(self, other: "Host", *, living: bool) -> bool:
        """Whether this and the other are one host; ``living``: the other lives, so that it was not booted since."""
        if self.boot == other.boot and (self.network == other.network or not other.network):
            return True
        same_machine = self.machine == other.machine != "" and self.boot != other.boot
        return (self.instance == other.instance != "" or same_machine) and not living

    def __str__(self) -> str:
        return f"{self.host} (machine id {self.machine or 'unknown'}, state file {self.instance or 'unnamed'})"


class Presence:
    """``run`` it in a nursery; ``release`` the record at the end. ``changed`` is called when another came or went."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        host: Host,
        changed: Callable[[], None],
        report: Callable[[str, dict[str, str]], None],
    ) -> None:
        self._ledger, self._store, self._host, self._changed, self._report = ledger, store, host, changed, report
        self._key = keys.DAEMONS + ledger.node
        self._hold = Hold(store, self._key, TTL)
        self._held = False

    async def run(self) -> None:
        """Hold the node's record for ever, or yield to who does."""
        told = ""
        while True:
            if not self._ledger.synced:  # what answers may be another cluster: nothing is written before it was read
                await trio.sleep(SOON)
                continue
            pause = PAUSE
            try:
                await self._turn()
                told = ""
            except StoreUnavailableError:  # the reader of the store tells of it
                pause = RETRY
            except StoreRefusedError as error:
                if str(error) != told:
                    self._report("cannot say to the cluster that this host serves the node", {"error": str(error)})
                told = str(error)
            await trio.sleep(RETRY if self._ledger.rival else pause)

    async def _turn(self) -> None:
        found = await self._hold.renew() if self._held else await self._look()
        if self._hold.held:
            self._yield_to(None)
            return
        other = None if found is None else _read(found)
        if other is not None and not self._host.is_of(other, living=self._held):
            self._yield_to(other)
            return
        if await self._hold.take(go_json(msgspec.to_builtins(self._host)), over=found):
            self._held = True
            self._yield_to(None)

    async def _look(self) -> Record | None:
        return next(iter((await self._store.read([self._key])).records), None)

    def _yield_to(self, other: Host | None) -> None:
        rival = "" if other is None else str(other)
        if rival != self._ledger.rival:
            self._ledger.rival = rival
            self._changed()

    async def release(self) -> None:
        """Let another host serve this node at once."""
        await self._hold.release()


def _read(record: Record) -> Host | None:
    """Who serves; None if that cannot be understood: nobody's."""
    try:
        return msgspec.json.decode(record.value, type=Host)
    except MALFORMED:
        return None
