"""Deliberate bugs, each put into the running code, to see that the simulation finds it.

A mutation replaces one function of ipamd while it is applied. ``MUTATIONS`` gives each by a sentence that says what
the mutated daemon does wrong.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

from ipamd.api.steps import Steps
from ipamd.core.block import Block
from ipamd.core.errors import NotDurableError
from ipamd.core.facts import Fact, Released, Withdrawn
from ipamd.core.ledger import Ledger
from ipamd.journal import statefile
from ipamd.journal.journal import Journal
from ipamd.store import batch
from ipamd.store.base import Outcome, StoreUnavailableError
from ipamd.store.draft import Draft
from ipamd.store.sync import Sync
from ipamd.store.writer import Writer

Mutation = Callable[[], AbstractContextManager[object]]
MUTATIONS: dict[str, Mutation] = {}


def mutation(name: str) -> Callable[[Mutation], Mutation]:
    """Enter a mutation into the list."""

    def enter(function: Mutation) -> Mutation:
        MUTATIONS[name] = function
        return function

    return enter


def _around(owner: Any, name: str, make: Callable[[Any], Any]) -> AbstractContextManager[object]:
    """Replace a function by what ``make`` builds around the original."""
    return patch.object(owner, name, make(getattr(owner, name)))


# --- the state file -------------------------------------------------------------------------------------------


@mutation("replies before the fact is in the state file")
def _() -> AbstractContextManager[object]:
    def persist(self: Any, facts: Sequence[Fact], _stages: object) -> None:
        self._append(self.__dict__.get("behind", ()))
        self.behind = facts
        self._wake()

    return patch.object(Steps, "persist", persist)


@mutation("answers an ADD that the full disk did not take")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def persist(self: Any, facts: Sequence[Fact], stages: Any) -> None:
            with suppress(NotDurableError):
                original(self, facts, stages)

        return persist

    return _around(Steps, "persist", make)


@mutation("drops from a checkpoint what is appended while it is written")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def append(self: Any, facts: Sequence[Fact]) -> None:
            late, self._late = self._late, None
            try:
                original(self, facts)
            finally:
                self._late = late

        return append

    return _around(Journal, "append", make)


def _checkpoint_without(unwanted: Callable[[Fact], bool]) -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        return lambda self, **how: (fact for fact in original(self, **how) if not unwanted(fact))

    return _around(Ledger, "checkpoint", make)


@mutation("leaves the tombstones out of a checkpoint")
def _() -> AbstractContextManager[object]:
    return _checkpoint_without(lambda fact: isinstance(fact, Released) and not fact.places)


@mutation("leaves what is being released out of a checkpoint")
def _() -> AbstractContextManager[object]:
    return _checkpoint_without(lambda fact: isinstance(fact, Released) and bool(fact.places))


@mutation("leaves what is withdrawn out of the state file")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def append(self: Any, facts: Iterable[Fact]) -> None:
            original(self, [fact for fact in facts if not isinstance(fact, Withdrawn)])

        return append

    return _around(Journal, "append", make)


@mutation("forgets a reboot")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        return lambda *arguments: replace(original(*arguments), earlier=0)

    return _around(statefile, "recover", make)


@mutation("never ends a failure to sync")
def _() -> AbstractContextManager[object]:
    return patch.object(Journal, "should_checkpoint", property(lambda self: self.appended > self._floor))


# --- memory ---------------------------------------------------------------------------------------------------


@mutation("hands out what is free in the block, not only what is in reserve")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def sort(self: Any) -> tuple[int, int]:
            ours, free = original(self)
            return ours | (free if self.owned else 0), free

        return sort

    return _around(Block, "_sort_ordinals", make)


@mutation("hands an address of the reserve out twice")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def assign(self: Any, ordinal: int, assigned: Any) -> None:
            original(self, ordinal, assigned)
            if ordinal % 4 == 1:
                self._enqueue(ordinal)

        return assign

    return _around(Block, "assign", make)


@mutation("hands an address out again before the store knows of the DEL")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def release(self: Any, ordinal: int, handle: str) -> None:
            original(self, ordinal, handle)
            if ordinal in self.releasing:
                self._enqueue(ordinal)

        return release

    return _around(Block, "release", make)


@mutation("takes an address back while a transaction is in doubt")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def settle(self: Any, **named: bool) -> bool:
            self.doubtful = False
            taken: bool = original(self, **named)
            self._adrift = {}
            return taken

        return settle

    return _around(Block, "settle", make)


@mutation("forgets after a start that a transaction of the last life may arrive")
def _() -> AbstractContextManager[object]:
    def replay(self: Ledger, facts: Iterable[Fact]) -> None:
        for fact in facts:
            self.apply(fact)

    return patch.object(Ledger, "replay", replay)


@mutation("drops the tombstone of a DEL")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def apply(self: Any, fact: Released) -> None:
            original(self, fact)
            self.tombstones.clear()

        return apply

    return _around(Ledger, "_apply_released", make)


@mutation("gives a repeated ADD another address")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def add(self: Any, request: Any, now: Any) -> Any:
            held = self.holdings.pop(request.attachment, None)
            decided = original(self, request, now)
            if held is not None and not hasattr(decided, "assigned"):
                self.holdings[request.attachment] = held
            return decided

        return add

    return _around(Ledger, "add", make)


@mutation("believes only the store when it starts")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def replay(self: Any, facts: Iterable[Fact]) -> None:
            original(self, facts)
            for held in list(self.holdings.values()):
                if any(place.ordinal in self.blocks[place.block].unflushed for place in held.places):
                    self.apply(Released(held.attachment, held.handle, held.places, 0))

        return replay

    return _around(Ledger, "replay", make)


@mutation("lets an older word of the store replace a newer one")
def _() -> AbstractContextManager[object]:
    return patch.object(Ledger, "knows", lambda *_arguments: False)


# --- the store ------------------------------------------------------------------------------------------------


class _Whatever(int):
    """A revision that is always as expected."""

    __hash__ = int.__hash__

    def __eq__(self, _other: object) -> bool:
        return True


@mutation("writes a block whatever became of it since it was read")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def write(self: Any) -> Any:
            yield from original(self)
            self.changes = tuple(replace(each, expected=_Whatever(each.expected)) for each in self.changes)

        return write

    return _around(Draft, "write", make)


@mutation("takes a transaction without an answer for done")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        async def send(self: Any, *arguments: Any) -> Outcome:
            try:
                outcome: Outcome = await original(self, *arguments)
            except StoreUnavailableError:
                self._doubt = ()
                return Outcome(0, self._ledger.revision + 1, {})
            return outcome

        return send

    return _around(Writer, "_send", make)


@mutation("leaves the pods' handles out of the transaction")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def write_handle(self: Any, handle: str, *rest: Any) -> None:
            if "ipamd-reserve" in handle:
                original(self, handle, *rest)

        return write_handle

    return _around(Draft, "_write_handle", make)


@mutation("sends what it gives back before that is in the state file")
def _() -> AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def gather(*arguments: Any) -> Any:
            draft = original(*arguments)
            if draft is not None:
                draft.before = []
            return draft

        return gather

    return _around(batch, "gather", make)


@mutation("looks for its reserve in its own blocks only")
def _() -> AbstractContextManager[object]:
    return patch.object(Sync, "_reserved_in", lambda _self, _records: set())


@contextmanager
def applied(name: str) -> Iterator[None]:
    """Within it the daemons have this bug."""
    with MUTATIONS[name]():
        yield
