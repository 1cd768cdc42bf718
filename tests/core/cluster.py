"""A deliberately dumb cluster: records in a dict, whole-store revisions, and the strangers that write to it."""

from collections.abc import Iterable

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.facts import Place
from ipamd.core.records import BlockRecord, HandleRecord, affinity_record, attribute, cooling_attribute, new_block
from ipamd.store.base import Change, Outcome, Record


class Cluster:
    """What etcd holds. ``allocations`` is the view that the tests believe; every write goes through ``commit``."""

    def __init__(self) -> None:
        self.revision = 10
        self.records: dict[str, Record] = {}

    def commit(self, changes: Iterable[Change]) -> Outcome:
        """All or nothing, if every record is at the revision that its change expects."""
        changes = list(changes)
        if any(self._revision(change.key) != change.expected for change in changes):
            return Outcome(None, self.revision, {c.key: self.records[c.key] for c in changes if c.key in self.records})
        self.revision += 1
        for change in changes:
            if change.value is None:
                self.records.pop(change.key, None)
            else:
                self.records[change.key] = Record(change.key, change.value, self.revision)
        return Outcome(0, self.revision, {})

    def _revision(self, key: str) -> int:
        return self.records[key].revision if key in self.records else 0

    def block(self, cidr: str) -> BlockRecord | None:
        """A block as the store has it."""
        record = self.records.get(keys.block_key(parse_cidr(cidr)))
        return None if record is None else BlockRecord(record.value)

    def blocks(self) -> dict[str, BlockRecord]:
        """All blocks, by CIDR."""
        return {
            str(keys.cidr_of(key)): BlockRecord(record.value)
            for key, record in self.records.items()
            if keys.kind_of(key) is keys.Kind.BLOCK
        }

    def allocations(self) -> dict[Place, tuple[str, str, str]]:
        """Who holds each allocated place: handle, node, and the type if it has one."""
        return {
            Place(cidr, ordinal): (owner.handle, owner.node, owner.secondary.get("type", ""))
            for cidr, block in self.blocks().items()
            for ordinal in range(block.cidr.size)
            if (owner := block.owner(ordinal)) is not None
        }

    def handles(self) -> dict[str, dict[str, int]]:
        """What the handle records say."""
        return {
            keys.name_of(key): HandleRecord(record.value).blocks
            for key, record in self.records.items()
            if keys.kind_of(key) is keys.Kind.HANDLE
        }

    def counted(self) -> dict[str, dict[str, int]]:
        """What the handle records should say, by the allocations."""
        counts: dict[str, dict[str, int]] = {}
        for place, (handle, _node, _kind) in self.allocations().items():
            if not handle:
                continue  # it cools
            blocks = counts.setdefault(handle, {})
            blocks[place.block] = blocks.get(place.block, 0) + 1
        return counts

    # --- strangers --------------------------------------------------------------------------------------------

    def take(self, place: Place, handle: str, secondary: dict[str, str]) -> None:
        """A stranger takes a free ordinal, as Calico's programs do."""
        record = self.block(place.block)
        assert record is not None
        assert record.owner(place.ordinal) is None
        record.take({place.ordinal}, attribute(handle, secondary))
        self._write(record, handle)

    def free(self, place: Place) -> None:
        """A stranger frees an allocated ordinal, whoever has it."""
        record = self.block(place.block)
        assert record is not None
        owner = record.owner(place.ordinal)
        assert owner is not None
        record.free(place.ordinal)
        self._write(record, owner.handle)

    def cool(self, place: Place, at: int) -> None:
        """A stranger releases an allocated ordinal under a cooldown, whoever has it."""
        record = self.block(place.block)
        assert record is not None
        owner = record.owner(place.ordinal)
        assert owner is not None
        record.cool(place.ordinal, cooling_attribute(at))
        self._write(record, owner.handle)

    def make(self, cidr: str, affinity: str, at: int) -> None:
        """A stranger claims a block."""
        block = new_block(parse_cidr(cidr), affinity, at)
        self._write(block, "")
        key = keys.affinity_key(affinity.removeprefix("host:"), block.cidr)
        self.commit([Change(key, affinity_record("confirmed"), self._revision(key))])

    def drop(self, cidr: str, node: str) -> None:
        """A stranger deletes a block, its affinity, and its share of all handles."""
        changes = [
            Change(key, None, self._revision(key))
            for key in (keys.block_key(parse_cidr(cidr)), keys.affinity_key(node, parse_cidr(cidr)))
            if key in self.records
        ]
        for handle, blocks in self.handles().items():
            if cidr in blocks:
                changes.append(self._handle(handle, cidr, 0))
        self.commit(changes)

    def _write(self, record: BlockRecord, handle: str) -> None:
        cidr, key = str(record.cidr), keys.block_key(record.cidr)
        changes = [Change(key, record.encode(), self._revision(key))]
        if handle:
            changes.append(self._handle(handle, cidr, record.count(handle)))
        assert self.commit(changes).chosen == 0

    def _handle(self, handle: str, cidr: str, count: int) -> Change:
        key = keys.handle_key(handle)
        record = HandleRecord(self.records[key].value if key in self.records else None)
        record.set(cidr, count)
        return Change(key, record.encode(), self._revision(key))
