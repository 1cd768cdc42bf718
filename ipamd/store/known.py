"""What the writer knows of the store's records, and what the outcome of a transaction tells. Pure.

The ledger knows blocks. What other records hold (handles, affinities) is remembered in ``Known``. A key never seen is
taken to be absent: if that is wrong, the commit is refused and its answer brings the record.
"""

from collections.abc import Iterable

from ipamd.core import keys
from ipamd.core.facts import Committed
from ipamd.core.records import HandleRecord, RecordError
from ipamd.store.base import Change, Outcome, Record


class Known:
    """The last seen state of handles and affinities, by key."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def clear(self) -> None:
        """Nothing is known."""
        self._records.clear()

    def revision(self, key: str) -> int:
        """The revision to expect of a key; 0: absent, as far as is known."""
        record = self._records.get(key)
        return record.revision if record else 0

    def value(self, key: str) -> bytes | None:
        """The value of a key, None if it is absent as far as is known."""
        record = self._records.get(key)
        return record.value if record else None

    def handle(self, handle: str) -> HandleRecord:
        """A handle's record; an empty one if it is absent, or cannot be understood and is to be written anew."""
        try:
            return HandleRecord(self.value(keys.handle_key(handle)))
        except RecordError:
            return HandleRecord(None)

    def learn(self, record_keys: Iterable[str], records: dict[str, Record]) -> None:
        """These keys are now as in ``records``; those without a record are absent."""
        for key in record_keys:
            if keys.is_block(key):
                continue
            if key in records:
                self._records[key] = records[key]
            else:
                self._records.pop(key, None)

    def wrote(self, changes: Iterable[Change], revision: int) -> None:
        """A commit wrote these changes at ``revision``."""
        for change in changes:
            if keys.is_block(change.key):
                continue
            if change.value is None:
                self._records.pop(change.key, None)
            else:
                self._records[change.key] = Record(change.key, change.value, revision)


def committed(changes: Iterable[Change], revision: int) -> list[Committed]:
    """The facts that a successful commit established: the new images of the blocks it wrote."""
    return [
        Committed(change.key, revision, change.value)
        for change in changes
        if keys.is_block(change.key) and (change.value is not None or change.expected)  # else only a comparison
    ]


def observed(changes: Iterable[Change], outcome: Outcome) -> list[Committed]:
    """The facts that a refused commit told: the current images of the blocks it meant to write."""
    facts = []
    for change in changes:
        if keys.is_block(change.key):
            record = outcome.records.get(change.key)
            if record is None:
                facts.append(Committed(change.key, outcome.revision, None))
            else:
                facts.append(Committed(change.key, record.revision, record.value))
    return facts
