"""ADDs that wait for an address, first come, first served.

Whoever waits counts as demand on the pool whose turn it is, so that the writer supplies it; when addresses arrive
(or a pool turns out to have none) ``serve`` decides for each in order, at once and without a task switch.

No ADD is refused for want of a pool or of addresses before the store was asked once more (``api.look``).
"""

from collections.abc import Awaitable, Callable, Sequence

import trio

from ipamd.core.clock import Now
from ipamd.core.errors import Code, NotDurableError, RefusedError
from ipamd.core.facts import Assigned, Attachment, Fact, RangeAssigned
from ipamd.core.ledger import Ledger
from ipamd.core.request import Added, AddRequest, Shortage

CONFIRMED = (Code.NO_POOL, Code.EXHAUSTED, Code.BLOCK_LIMIT)
"""The refusals that a newer state of the store could change."""


def not_durable(ledger: Ledger, assigned: Assigned | RangeAssigned, error: NotDurableError) -> RefusedError:
    """Take back an ADD whose facts could not be written, and say so."""
    ledger.undo(assigned)
    return RefusedError(
        Code.IO_FAILURE,
        f"cannot assign an address to container {assigned.attachment.container}: {error}",
    )


class _Waiter:
    """One ADD that waits, and what became of it."""

    def __init__(self, request: AddRequest, pool: str) -> None:
        self.request = request
        self.pool = pool
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
        outcome = await self._stand(request, found.pool, until) if isinstance(found, Shortage) else found
        if isinstance(outcome, RefusedError) and outcome.code in CONFIRMED:
            obstacle = await self.confirm()
            outcome = await self._stand(request, "", until)
            if obstacle and isinstance(outcome, RefusedError) and outcome.code in CONFIRMED:
                outcome = _unconfirmed(outcome, obstacle)
        if isinstance(outcome, RefusedError):
            raise outcome
        return outcome

    async def _stand(self, request: AddRequest, pool: str, until: float) -> Added | RefusedError:
        """Stand in the line until there is an outcome, at once if there is one now."""
        waiter = _Waiter(request, pool)
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
                    self._move(waiter, decided.pool)
                    continue
                waiter.outcome = self._persist(decided)
            self._leave(waiter)
            waiter.done.set()

    def _persist(self, decided: Added) -> Added | RefusedError:
        # Here and not where the waiter wakes: a second ADD of the attachment could be answered before the first.
        try:
            if decided.facts:
                self._append(decided.facts)
        except NotDurableError as error:
            return not_durable(self._ledger, decided.assigned, error)
        return decided

    def _late(self, waiter: _Waiter) -> RefusedError:
        wanted = f"an address of pool {waiter.pool}" if waiter.pool else "an address"
        return RefusedError(
            Code.TRY_AGAIN_LATER,
            f"cannot assign {wanted} to {waiter.request.subject}: none could be had in {self._deadline:g} s; "
            f"{self._excuse()}; the runtime will try again",
        )

    def _enter(self, waiter: _Waiter) -> None:
        self._line[waiter] = None
        self._demand(waiter.pool, 1)

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._line:
            del self._line[waiter]
            self._demand(waiter.pool, -1)

    def _move(self, waiter: _Waiter, pool: str) -> None:
        if pool != waiter.pool:
            self._demand(waiter.pool, -1)
            waiter.pool = pool
            self._demand(pool, 1)

    def _demand(self, pool: str, change: int) -> None:
        if pool:
            now = self._now().boot
            reserve = self._ledger.reserve(pool, now)
            reserve.waiting += change
            if change > 0:
                reserve.grow(now)
                self._on_demand()


def _unconfirmed(refusal: RefusedError, obstacle: str) -> RefusedError:
    words = f"{refusal.msg}; this is what was known last, the store could not be asked ({obstacle})"
    return RefusedError(refusal.code, words, refusal.details)


async def _nobody_to_ask() -> str:
    return ""
