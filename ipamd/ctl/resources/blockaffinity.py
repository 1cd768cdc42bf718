"""BlockAffinity: which node a block belongs to. Only looked at: nodes claim and release blocks themselves.

Shown as kubectl shows Calico's custom resource. When it was made is not in its record; the block says since when it
has been claimed.
"""

from collections.abc import Sequence
from time import time

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.records import BlockRecord, RecordError, affinity_state, parse_rfc3339, rfc3339
from ipamd.ctl.errors import CommandError
from ipamd.ctl.output import Column, Sheet, age
from ipamd.ctl.resources.kind import Kind, Listing, Resource, field
from ipamd.ctl.target import Records
from ipamd.store.base import Record

_OWNERS = {keys.IPAM + "host/": "host", keys.IPAM + "virtual/": "virtual"}
"""Where affinities are, and of what type their owner is."""


class _BlockAffinityKind(Kind):
    writable = False

    async def read(self, records: Records, names: Sequence[str]) -> Listing:
        snapshot = await records.read((), tuple(_OWNERS))
        found = [affinity for record in snapshot.records if (affinity := _affinity(record)) is not None]
        found.sort(key=lambda affinity: str(affinity["metadata"]["name"]))
        if names:
            known = {affinity["metadata"]["name"] for affinity in found}
            for name in names:
                if name not in known:
                    raise self.missing("get", name)
            found = [affinity for name in names for affinity in found if affinity["metadata"]["name"] == name]
        claimed = await _claimed(records, found)
        for affinity in found:
            at = claimed.get(affinity["spec"]["cidr"])
            if at is not None:
                affinity["metadata"]["creationTimestamp"] = rfc3339(at)
        return Listing(snapshot.revision, found)

    def document(self, listing: Listing, names: Sequence[str]) -> object:
        if len(names) == 1:
            return listing.resources[0]
        return {"apiVersion": "v1", "items": listing.resources, "kind": "List", "metadata": {"resourceVersion": ""}}


def _affinity(record: Record) -> Resource | None:
    """The resource of a record; None if it is softly deleted, or no affinity."""
    try:
        state, cidr = affinity_state(record.value), str(keys.cidr_of(record.key))
    except RecordError as error:
        raise CommandError(
            f"cannot read the record {record.key}: {error}; another program wrote it: correct or delete it"
        ) from error
    except ValueError:  # no affinity's key
        return None
    prefix = next(prefix for prefix in _OWNERS if record.key.startswith(prefix))
    owner = record.key.removeprefix(prefix).partition("/")[0]
    name = "ipam-block-affinity-" + cidr.replace(".", "-").replace(":", "-").replace("/", "-")
    virtual = {"type": "virtual"} if _OWNERS[prefix] == "virtual" else {}
    return (
        None
        if not state
        else {
            "apiVersion": "crd.projectcalico.org/v1",
            "kind": "BlockAffinity",
            "metadata": {"name": name, "resourceVersion": str(record.revision)},
            "spec": {"cidr": cidr, "deleted": False, "node": owner, "state": state, **virtual},
        }
    )


async def _claimed(records: Records, affinities: Sequence[Resource]) -> dict[str, int]:
    """Since when each block has been claimed (Unix time, ns), by its CIDR, where the block says it."""
    wanted = {keys.block_key(parse_cidr(affinity["spec"]["cidr"])) for affinity in affinities}
    found = {}
    for record in (await records.read(sorted(wanted))).records if wanted else ():
        try:
            at = BlockRecord(record.value).claimed_at
        except RecordError:  # its age is not known
            continue
        if at is not None:
            found[str(keys.cidr_of(record.key))] = at
    return found


def _age(affinity: Resource) -> str:
    at = parse_rfc3339(field(affinity, "metadata", "creationTimestamp"))
    return "<unknown>" if at is None else age(time() - at / 1e9)


_COLUMNS = (
    Column("NAME", lambda affinity: field(affinity, "metadata", "name")),
    Column("AGE", _age),
    Column("NODE", lambda affinity: field(affinity, "spec", "node"), wide=True),
    Column("CIDR", lambda affinity: field(affinity, "spec", "cidr"), wide=True),
    Column("STATE", lambda affinity: field(affinity, "spec", "state"), wide=True),
)

BLOCK_AFFINITY = _BlockAffinityKind(
    "BlockAffinity",
    ("blockaffinities", "blockaffinity"),
    Sheet(_COLUMNS, lambda each: f"blockaffinity.crd.projectcalico.org/{field(each, 'metadata', 'name')}"),
)
