"""``/v1/import/host-local``: takes over what the reference plugin host-local holds. The command reads its folders.

All or nothing: a conflict refuses everything and names both holders. What was taken over is on the disk before the
reply, since host-local's own files are put away after it.
"""

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from msgspec import Struct

from ipamd.api import cni
from ipamd.api.access import Peer
from ipamd.api.answers import refused, shown
from ipamd.api.http import Request, Response
from ipamd.core.clock import Now
from ipamd.core.errors import Code, NotDurableError, RefusedError
from ipamd.core.facts import Fact
from ipamd.core.ledger import Ledger
from ipamd.core.records import MALFORMED
from ipamd.core.takeover import Network, Taken, take_over


class Import(Struct, frozen=True):
    """The body of a request; ``dry_run``: only say what would be done."""

    networks: list[Network]
    dry_run: bool = False


class Imported(Struct, frozen=True):
    """What was, or would be, taken over: counts of addresses as in ``core.takeover.Taken``."""

    dry_run: bool
    new: int
    known: int
    ended: int
    conflicts: tuple[str, ...]


class Takeover:
    """``append`` writes facts to the state file, ``sync`` waits until it is on the disk; both raise NotDurableError."""

    def __init__(
        self,
        ledger: Ledger,
        now: Callable[[], Now],
        append: Callable[[Sequence[Fact]], None],
        sync: Callable[[], Awaitable[None]],
    ) -> None:
        self._ledger, self._now, self._append, self._sync = ledger, now, append, sync

    def host_local(self, request: Request, _peer: Peer) -> Response | Awaitable[Response]:
        """Take over host-local's addresses; a second time changes nothing.

        Decided and held before this returns: whoever is answered meanwhile gets none of them.
        """
        try:
            asked = _read(request)
            taken = self._decide(asked)
            said = shown(Imported(asked.dry_run, taken.new, taken.known, taken.ended, taken.conflicts))
            return said if asked.dry_run else self._take(taken, said)
        except RefusedError as error:
            return refused(error)

    def _take(self, taken: Taken, said: Response) -> Awaitable[Response]:
        if taken.conflicts:
            words = f"cannot take over host-local's addresses: {'; '.join(taken.conflicts)}"
            raise RefusedError(Code.ADDRESS_TAKEN, words)
        try:
            if taken.facts:
                self._append(taken.facts)
        except NotDurableError as error:
            raise _not_durable(error) from error
        for fact in taken.facts:
            self._ledger.apply(fact)
        return self._synced(said)

    async def _synced(self, said: Response) -> Response:
        try:
            await self._sync()
        except NotDurableError as error:
            return refused(_not_durable(error))
        return said

    def _decide(self, asked: Import) -> Taken:
        try:
            return take_over(self._ledger, asked.networks, self._now())
        except ValueError as error:
            raise _unreadable(str(error)) from error


def _read(request: Request) -> Import:
    try:
        asked = msgspec.json.decode(request.body, type=Import)
    except MALFORMED as error:
        raise _unreadable(str(error)) from error
    for network in asked.networks:
        for held in network.held:  # what no DEL could name would be held for ever
            headers = {"cni-command": "DEL", "cni-containerid": held.container, "cni-ifname": held.interface}
            call = Request("", "", "", headers, b"", keep_alive=False)
            try:
                cni.read_invocation(call, cni.NetworkConfig(network.name), 0)
            except RefusedError as error:
                raise _unreadable(f"{held.address[:80]}: {error.msg}") from error
    return asked


def _not_durable(error: NotDurableError) -> RefusedError:
    return RefusedError(Code.IO_FAILURE, f"cannot take over host-local's addresses: {error}")


def _unreadable(why: str) -> RefusedError:
    return RefusedError(Code.UNDECODABLE, f"cannot read what host-local holds: {why}; nothing was taken over")
