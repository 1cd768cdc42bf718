"""ADDs that wait for an address, first come, first served.

Whoever waits counts as demand on the pool whose turn it is, so that the writer supplies it; when addresses arrive
(or a pool turns out to have none) ``serve`` decides for each in order, at once and without a task switch. Who asked for
certain addresses counts as demand on these alone.

No ADD is refused for want of a pool or of addresses before the store was asked once more (``api.look``).
"""

from collections.abc import Awaitable, Callable, Sequence

import trio

from ipamd.core.address import format_address
from ipamd.core.clock import Now
from ipamd.core.errors import Code, NotDurableError, RefusedError
from ipamd.core.facts import Attachment, Fact
from ipamd.core.ledger import Ledger
from ipamd.core.request import Added, AddRequest, RangeAdded, Shortage

CONFIRMED = (Code.NO_POOL, Code.EXHAUSTED, Code.BLOCK_LIMIT, Code.ADDRESS_NOT_ASSIGNABLE)
"""The refusals that a newer state of the store could change."""


def not_durable(ledger: Ledger, added: Added | RangeAdded, error: NotDurableError) -> RefusedError:
    """Take back an ADD whose facts could not be written, and say so."""
    ledger.undo(added)
    return RefusedError(
        Code.IO_FAILURE,
        f"cannot assign an address to container {added.assigned.attachment.container}: {error}",
    )


class _Waiter:
    """One ADD that waits, for what, and what became of it.

    ``demands`` has a shortage for each IP version (0: of no pool): what was supplied of one must still be there when
    the other is.
    """

    def __init__(self, request: AddRequest, shortage: Shortage) -> None:
        self.request = request
        self.shortage = shortage
        self.demands: dict[int, Shortage] = {}
        self.done = trio.Event()
        self.outcome: Added | RefusedError | None = None


class Waiting:
    """The line of ADDs, each waiting ``deadline`` seconds at most.

    ``append`` makes facts survive a crash of the daemon, ``on_demand`` is called when the demand on a pool grew,
    ``excuse`` says why it takes long.
    """

    def __init__(
        self,
        ledger: Ledger,
        now: Callable[[], Now],
        append: Callable[[Sequence[Fact]], None],
        deadline: float,
        on_demand: Callable[[], None],
        excuse: Callable[[], str],
    ) -> None:
        self._ledger, self._now, self._append, self._deadline = ledger, now, append, deadline
        self._on_demand, self._excuse = on_demand, excuse
        self._line: dict[_Waiter, None] = {}
        self.confirm: Callable[[], Awaitable[str]] = _nobody_to_ask
        """Brings memory up to date with the store; returns why it could not, else ""."""

    def __len__(self) -> int:
        return len(self._line)

    async def join(self, request: AddRequest, found: Shortage | RefusedError) -> Added:
        """Wait until the ADD is decided and in the journal; raises RefusedError, after the deadline with code 11.

        ``found`` is what the ledger said of it: a shortage, or a refusal that is to be confirmed. Cancelled while it
        waits, it leaves nothing assigned; once decided it stays decided, as another ADD of the attachment may have been
        answered with it: the DEL that follows a failed ADD takes it back.
        """
        until = trio.current_time() + self._deadline
        if self._ledger.settle():  # what was given up without the store's knowledge needs no store to be had again
            found = Shortage("")
        outcome = await self._stand(request, found, until) if isinstance(found, Shortage) else found
        if isinstance(outcome, RefusedError) and outcome.code in CONFIRMED:
            obstacle = await self.confirm()
            outcome = await self._stand(request, Shortage(""), until)
            if obstacle and isinstance(outcome, RefusedError) and outcome.code in CONFIRMED:
                outcome = _unconfirmed(outcome, obstacle)
        if isinstance(outcome, RefusedError):
            raise outcome
        return outcome

    async def _stand(self, request: AddRequest, shortage: Shortage, until: float) -> Added | RefusedError:
        """Stand in the line until there is an outcome, at once if there is one now."""
        waiter = _Waiter(request, shortage)
        self._enter(waiter)
        self.serve(request.attachment)  # addresses may have come since the ledger was asked
        try:
            with trio.move_on_at(until):
                await waiter.done.wait()
        finally:
            self._leave(waiter)
        return waiter.outcome or self._late(waiter)

    def serve(self, only: Attachment | None = None) -> None:
        """Decide for everybody in the line (or ``only`` the ADDs of one attachment) for whom there is an answer now."""
        for waiter in list(self._line):
            if only is not None and waiter.request.attachment != only:
                continue
            try:
                decided = self._ledger.add(waiter.request, self._now())
            except RefusedError as error:
                waiter.outcome = error
            else:
                if isinstance(decided, Shortage):
                    self._move(waiter, decided)
                    continue
                waiter.outcome = self._persist(decided)
            self._leave(waiter)
            waiter.done.set()

    def deleted(self, attachment: Attachment) -> None:
        """A DEL ends the wait of an ADD that it overtook, and what it gave up may be had again without the store."""
        self.serve(attachment)
        if self._line and self._ledger.settle():
            self.serve()

    def _persist(self, decided: Added) -> Added | RefusedError:
        # Here and not where the waiter wakes: a second ADD of the attachment could be answered before the first.
        try:
            if decided.facts:
                self._append(decided.facts)
        except NotDurableError as error:
            return not_durable(self._ledger, decided, error)
        return decided

    def _late(self, waiter: _Waiter) -> RefusedError:
        pool = waiter.shortage.pool
        wanted, problem = f"an address of pool {pool}" if pool else "an address", "none could be had"
        if waiter.shortage.wanted:
            asked = waiter.request.addresses.items()
            wanted, problem = " and ".join(format_address(*each) for each in asked), "the store could not be asked"
        return RefusedError(
            Code.TRY_AGAIN_LATER,
            f"cannot assign {wanted} to {waiter.request.subject}: {problem} in {self._deadline:g} s; "
            f"{self._excuse()}; the runtime will try again",
        )

    def _enter(self, waiter: _Waiter) -> None:
        self._line[waiter] = None
        waiter.demands[self._version(waiter.shortage)] = waiter.shortage
        self._demand(waiter.shortage)

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._line:
            del self._line[waiter]
            for shortage in waiter.demands.values():
                self._end_demand(shortage)

    def _move(self, waiter: _Waiter, shortage: Shortage) -> None:
        version = self._version(shortage)
        waiter.shortage, before = shortage, waiter.demands.get(version)
        if shortage != before:
            waiter.demands[version] = shortage
            self._demand(shortage)
            if before is not None:
                self._end_demand(before)
        if version and 0 in waiter.demands:
            self._end_demand(waiter.demands.pop(0))

    def _version(self, shortage: Shortage) -> int:
        pool = self._ledger.settings.pools.get(shortage.pool)
        return 0 if pool is None else pool.family

    def _demand(self, shortage: Shortage) -> None:
        if shortage.wanted:
            self._ledger.want(shortage.wanted)
        elif shortage.pool:
            now = self._now().boot
            for pool in (shortage.pool, *shortage.also):
                reserve = self._ledger.reserve(pool, now)
                reserve.waiting += 1
                reserve.named = reserve.named or shortage.named
                reserve.grow(now)
        else:
            return
        self._on_demand()

    def _end_demand(self, shortage: Shortage) -> None:
        if shortage.wanted:
            self._ledger.unwant(shortage.wanted)
        elif shortage.pool:
            for pool in (shortage.pool, *shortage.also):
                self._ledger.reserve(pool, self._now().boot).waiting -= 1


def _unconfirmed(refusal: RefusedError, obstacle: str) -> RefusedError:
    words = f"{refusal.msg}; this is what was known last, the store could not be asked ({obstacle})"
    return RefusedError(refusal.code, words, refusal.details)


async def _nobody_to_ask() -> str:
    return ""
