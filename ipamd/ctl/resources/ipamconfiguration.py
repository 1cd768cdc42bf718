"""IPAMConfiguration: how blocks are assigned, for the whole cluster. There is one, called ``default``, or none.

Its record is not a resource but Calico's IPAM configuration, with names of its own; other fields of it survive.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ipamd.core import keys
from ipamd.core.records import RecordError, decode_config, go_json
from ipamd.ctl.output import Column, Sheet
from ipamd.ctl.resources.fields import BOOLEAN, TEXT, WHOLE
from ipamd.ctl.resources.kind import API, Kind, Listing, Resource, damaged, field
from ipamd.ctl.target import Records
from ipamd.store.base import Record

NAME = "default"
_PERSISTENCE = "kubeVirtVMAddressPersistence"
_STORED = {
    "strictAffinity": "strict_affinity",
    "autoAllocateBlocks": "auto_allocate_blocks",
    "maxBlocksPerHost": "maxBlocksPerHost",
    _PERSISTENCE: _PERSISTENCE,
    "ipCooldownSeconds": "ipCooldownSeconds",
}
"""The record's name of each field, in the record's order."""


class _IpamConfigurationKind(Kind):
    also = ("IPAMConfig",)

    def key(self, name: str) -> str:
        """The one record's key; another name has none that could be there."""
        return keys.CONFIG if name in (NAME, "") else f"{keys.CONFIG}/{name}"

    async def read(self, records: Records, names: Sequence[str]) -> Listing:
        if names:
            return await super().read(records, names)
        snapshot = await records.read([keys.CONFIG])
        return Listing(snapshot.revision, [self.decode(record) for record in snapshot.records])

    def decode(self, record: Record) -> Resource:
        try:
            known = decode_config(record.value)
            stored = msgspec.json.decode(record.value, type=dict[str, Any])
        except (RecordError, ValueError) as error:
            raise damaged(record.key, error) from error
        spec = {
            "strictAffinity": known.strict_affinity,
            "autoAllocateBlocks": known.auto_allocate_blocks,
            "maxBlocksPerHost": known.max_blocks_per_host,
            **({_PERSISTENCE: stored[_PERSISTENCE]} if _PERSISTENCE in stored else {}),
            "ipCooldownSeconds": known.cooldown,
        }
        metadata = {"name": NAME, "resourceVersion": str(record.revision)}
        return {"kind": self.name, "apiVersion": API, "metadata": metadata, "spec": spec}

    def problems(self, given: Resource, stored: Resource | None) -> Iterator[str]:
        yield from super().problems(given, stored)
        metadata = given.get("metadata")
        if isinstance(metadata, dict) and metadata.get("name") not in (NAME, None):
            yield f"metadata.name must be {NAME}: a cluster has one configuration"

    def bad_spec(self, spec: Mapping[str, Any], stored: Mapping[str, Any] | None) -> Iterator[str]:
        yield from (
            f"spec.{name} must not be negative"
            for name in ("maxBlocksPerHost", "ipCooldownSeconds")
            if (spec.get(name) or 0) < 0
        )
        if spec.get("maxBlocksPerHost") and not spec.get("strictAffinity"):
            yield "spec.maxBlocksPerHost needs spec.strictAffinity: true, or nodes at the limit would borrow addresses"
        if spec.get("autoAllocateBlocks") is False and not spec.get("strictAffinity"):
            yield "spec.autoAllocateBlocks: false needs spec.strictAffinity: true, or nodes would borrow all addresses"

    def fill(self, spec: dict[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
        defaults = {"strictAffinity": False, "autoAllocateBlocks": True, "maxBlocksPerHost": 0, "ipCooldownSeconds": 0}
        return {**defaults, _PERSISTENCE: stored.get(_PERSISTENCE, "Enabled"), **spec}

    def encode(self, wanted: Resource, stored: bytes | None) -> bytes:
        """Calico's record: booleans always, numbers only if they are not 0."""
        spec = wanted["spec"]
        before = msgspec.json.decode(stored, type=dict[str, Any]) if stored else {}
        record = {
            name: spec[ours] for ours, name in _STORED.items() if spec.get(ours) not in (None, 0) or ours in _BOOLEANS
        }
        return go_json({**record, **{name: value for name, value in before.items() if name not in _STORED.values()}})


_BOOLEANS = ("strictAffinity", "autoAllocateBlocks")
_COLUMNS = (
    Column("NAME", lambda each: field(each, "metadata", "name")),
    Column("STRICTAFFINITY", lambda each: field(each, "spec", "strictAffinity")),
    Column("AUTOALLOCATEBLOCKS", lambda each: field(each, "spec", "autoAllocateBlocks")),
    Column("MAXBLOCKSPERHOST", lambda each: field(each, "spec", "maxBlocksPerHost")),
    Column("IPCOOLDOWNSECONDS", lambda each: field(each, "spec", "ipCooldownSeconds"), wide=True),
)

IPAM_CONFIGURATION = _IpamConfigurationKind(
    "IPAMConfiguration",
    ("ipamconfigurations", "ipamconfiguration", "ipamconfigs", "ipamconfig"),
    Sheet(_COLUMNS, lambda each: f"ipamconfiguration.projectcalico.org/{field(each, 'metadata', 'name')}", calico=True),
    {
        "strictAffinity": BOOLEAN,
        "autoAllocateBlocks": BOOLEAN,
        "maxBlocksPerHost": WHOLE,
        _PERSISTENCE: TEXT,
        "ipCooldownSeconds": WHOLE,
    },
)
