"""``/v1/tunnel-addresses``: tunnel addresses of this node for other programs on it than Calico's node agent.

They come from the pools that allow the use ``Tunnel`` and serve this node, whatever their encapsulation; who wants a
certain pool names it. The node agent takes its own without asking anybody; one that it has is answered as the node's.
"""

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from msgspec import Struct

from ipamd.api import views
from ipamd.api.access import Peer
from ipamd.api.answers import refused, shown
from ipamd.api.http import Request, Response
from ipamd.api.waiting import Waiting, not_durable
from ipamd.core import tunnel
from ipamd.core.clock import Now
from ipamd.core.errors import Code, NotDurableError, RefusedError
from ipamd.core.facts import Assigned, Fact
from ipamd.core.ledger import Ledger
from ipamd.core.records import MALFORMED
from ipamd.core.request import Added, AddRequest, Shortage


class Wanted(Struct, frozen=True):
    """The body of a request: the type as Calico's records have it, and pools by name or CIDR (none: any)."""

    type: str
    pools: list[str] = []


class Tunnels:
    """Gives and releases this node's tunnel addresses, one of each type; an answer is durable like an ADD's.

    ``find`` learns from the store what a handle holds, and returns why it could not, else "". The rest is as in
    ``Handlers``.
    """

    def __init__(
        self,
        ledger: Ledger,
        waiting: Waiting,
        now: Callable[[], Now],
        append: Callable[[Sequence[Fact]], None],
        owe: Callable[[Sequence[Fact]], None],
        wake: Callable[[], None],
        find: Callable[[str], Awaitable[str]],
        durable: Callable[[Sequence[Fact]], Awaitable[None]] | None = None,
    ) -> None:
        self._ledger, self._waiting, self._now = ledger, waiting, now
        self._append, self._owe, self._wake, self._find, self._durable = append, owe, wake, find, durable

    def listed(self, _request: Request, _peer: Peer) -> Response:
        """The node's tunnel addresses, be they given here or taken by the node agent."""
        return shown(views.tunnels(self._ledger))

    async def give(self, request: Request, _peer: Peer) -> Response:
        """Give the address of a type: the one that the node has, or a new one."""
        try:
            wanted = _read(request)
            asked = tunnel.request(self._ledger.node, wanted.type, wanted.pools, self._now().boot)
            assigned = await self._assign(asked)
            if self._durable is not None:
                await self._durable((assigned,))
            view = self._given(wanted.type, asked)
        except RefusedError as error:
            return refused(error)
        except NotDurableError as error:
            return refused(RefusedError(Code.IO_FAILURE, str(error)))
        return shown(view)

    def _given(self, kind: str, asked: AddRequest) -> views.TunnelView:
        view = next((each for each in views.tunnels(self._ledger) if each.type == kind), None)
        if view is None:
            raise RefusedError(
                Code.DELETED,
                f"cannot assign an address to {asked.subject}: it was released while it was being assigned; "
                "ask again if it is still wanted",
            )
        return view

    async def _assign(self, asked: AddRequest) -> Assigned:
        if asked.attachment not in self._ledger.holdings:
            obstacle = await self._find(asked.attachment.handle)
            if obstacle:
                raise RefusedError(
                    Code.TRY_AGAIN_LATER,
                    f"cannot assign an address to {asked.subject}: the store could not be asked whether it has one "
                    f"already ({obstacle}); try again later",
                )
        decided: Added | Shortage | RefusedError
        try:
            decided = self._ledger.add(asked, self._now())
        except RefusedError as error:
            decided = error
        if not isinstance(decided, Added):
            return (await self._waiting.join(asked, decided)).assigned
        if decided.facts:
            try:
                self._append(decided.facts)
            except NotDurableError as error:
                raise not_durable(self._ledger, decided, error) from error
            self._wake()
        return decided.assigned

    def release(self, request: Request, _peer: Peer) -> Response:
        """Release the address of a type; that there is none is a success too."""
        try:
            wanted = _read(request)
        except RefusedError as error:
            return refused(error)
        who = tunnel.attachment(self._ledger.node, wanted.type)
        facts = self._ledger.delete(who, "", self._now().boot).facts
        try:
            self._append(facts)
        except NotDurableError:
            self._owe(facts)
        self._wake()
        return Response(204)


def _read(request: Request) -> Wanted:
    try:
        wanted = msgspec.json.decode(request.body, type=Wanted)
    except MALFORMED as error:
        raise RefusedError(
            Code.UNDECODABLE,
            f'cannot read the request: {error}; send a body such as {{"type": "vxlanTunnelAddress"}}',
        ) from error
    if wanted.type not in tunnel.HANDLES:
        raise RefusedError(
            Code.INVALID_CONFIGURATION,
            f"cannot use type {wanted.type[:80]!r}: the types are {', '.join(tunnel.HANDLES)}; name one of them",
        )
    return wanted
