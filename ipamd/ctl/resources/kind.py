"""What a kind of resource is to commands: a resource as plain values (dict, list, str, ...), and its record.

A resource's ``metadata.resourceVersion`` is the revision of its record, as with Calico; it is shown, never stored.
What is stored is what Calico stores: fields in the order of its types, uid and creation time kept for ever.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from ipamd.core.keys import RESOURCES
from ipamd.core.records import go_json
from ipamd.ctl.errors import CommandError, DamagedError
from ipamd.ctl.output import Sheet
from ipamd.ctl.resources.fields import ANY, METADATA, Fields, bad_fields, bad_name, ordered
from ipamd.ctl.target import Records
from ipamd.store.base import Record

Resource = dict[str, Any]

API = "projectcalico.org/v3"
_OURS = ("labels", "annotations")
"""What of the metadata whoever applies a resource says; all else is the store's."""
_KUBERNETES = "projectcalico.org/metadata"
"""An annotation in which the custom resource keeps what the record has as metadata."""


class Listing(Struct, frozen=True):
    """Resources as they stood at ``revision``, sorted by name; ``damaged``: why others cannot be read."""

    revision: int
    resources: list[Resource]
    damaged: list[str] = []


class Kind:
    """A kind whose records are resources under a common prefix; other kinds override how they are read and written.

    ``called`` are its names on the command line, in lower case, the plural first; ``also`` other names that a file may
    give it; ``spec`` the fields of its specification (None: they are not looked at).
    """

    also: tuple[str, ...] = ()
    writable = True

    def __init__(self, name: str, called: Sequence[str], sheet: Sheet, spec: Fields | None = None) -> None:
        self.name, self.called, self.sheet, self.spec = name, tuple(called), sheet, spec

    def key(self, name: str) -> str:
        """The key of the record of this name."""
        return f"{RESOURCES}{self.called[0]}/{name}"

    # --- reading ----------------------------------------------------------------------------------------------

    async def read(self, records: Records, names: Sequence[str]) -> Listing:
        """Those of these names, or all; raises CommandError for the first named one that is not there, or damaged."""
        if names:
            snapshot = await records.read([self.key(name) for name in names])
        else:
            snapshot = await records.read((), (self.key(""),))
        found = {record.key: record for record in snapshot.records}
        for name in names:
            if self.key(name) not in found:
                raise self.missing("get", name)
        if names:
            return Listing(snapshot.revision, [self.decode(found[self.key(name)]) for name in names])
        listing = Listing(snapshot.revision, [])
        for key in sorted(found):
            try:
                listing.resources.append(self.decode(found[key]))
            except DamagedError as error:
                listing.damaged.append(str(error))
        return listing

    def missing(self, verb: str, name: str) -> CommandError:
        """The error that there is no resource of a name."""
        return CommandError(
            f"cannot {verb} {self.name} {name}: it does not exist; `ipamctl get {self.called[-1]}` lists those that do"
        )

    def document(self, listing: Listing, names: Sequence[str]) -> object:
        """What YAML and JSON show: one resource by itself if one was named, all as a list of the kind."""
        if len(names) == 1:
            return listing.resources[0]
        if names:
            return listing.resources
        return {
            "kind": f"{self.name}List",
            "apiVersion": API,
            "metadata": {"resourceVersion": str(listing.revision)},
            "items": listing.resources,
        }

    def decode(self, record: Record) -> Resource:
        """The resource that a record holds, with its version. Raises DamagedError."""
        try:
            resource = msgspec.json.decode(record.value, type=dict[str, Any])
            metadata = {**resource["metadata"], "resourceVersion": str(record.revision)}
            return {**resource, "metadata": ordered(metadata, METADATA)}
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise damaged(record.key, error) from error

    # --- writing ----------------------------------------------------------------------------------------------

    def problems(self, given: Resource, stored: Resource | None) -> Iterator[str]:
        """What is wrong with a resource by itself, in words for who wrote it."""
        top = {"apiVersion": ANY, "kind": ANY, "metadata": ANY, "spec": ANY, "status": ANY}
        before: Resource = stored or {}
        yield from (each.removeprefix(".") for each in bad_fields("", given, top, before))
        metadata = given.get("metadata")
        yield from bad_fields("metadata", metadata, METADATA, before.get("metadata"))
        yield from bad_name(metadata.get("name") if isinstance(metadata, dict) else None)
        if self.spec is not None:
            found = list(bad_fields("spec", given.get("spec"), self.spec, before.get("spec")))
            yield from found
            if not found:
                yield from self.bad_spec(given.get("spec") or {}, (before.get("spec") or {}) if stored else None)

    def bad_spec(self, spec: Mapping[str, Any], stored: Mapping[str, Any] | None) -> Iterator[str]:
        """What is wrong with a specification whose fields are of the right types."""
        yield from ()

    async def conflicts(self, records: Records, wanted: Resource, stored: Resource | None) -> list[str]:
        """What is wrong with a resource beside the others."""
        return []

    def complete(self, given: Resource, stored: Resource | None, uid: str, created: str) -> Resource:
        """The resource to store: what the store says of it (uid, times, what we do not know), and then what was given.

        Labels, annotations, specification and status that are not given at all stay as they are.
        """
        before: Resource = stored or {"metadata": {"uid": uid, "creationTimestamp": created}}
        said = {name: value for name in _OURS if (value := (given["metadata"]).get(name)) is not None}
        if "annotations" in said:
            said["annotations"] = {k: v for k, v in said["annotations"].items() if k != _KUBERNETES}
        metadata = {**before["metadata"], **said, "name": given["metadata"]["name"]}
        metadata = {name: value for name, value in metadata.items() if name not in _OURS or value}
        wanted = {
            **before,
            **{name: given[name] for name in ("spec", "status") if given.get(name) is not None},
            "kind": self.name,
            "apiVersion": API,
            "metadata": ordered(metadata, METADATA),
        }
        if self.spec is not None:
            old_spec, spec = before.get("spec") or {}, wanted.get("spec") or {}
            kept = {name: value for name, value in old_spec.items() if name not in self.spec}
            filled = self.fill({name: value for name, value in {**kept, **spec}.items() if value is not None}, old_spec)
            wanted["spec"] = ordered(filled, self.spec)
        return ordered(wanted, ("kind", "apiVersion", "metadata", "spec", "status"))

    def fill(self, spec: dict[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
        """The specification with the defaults of what it leaves out."""
        return spec

    def encode(self, wanted: Resource, _stored: bytes | None) -> bytes:
        """The record of a complete resource; ``_stored`` is the one it replaces."""
        metadata = {k: v for k, v in wanted["metadata"].items() if k not in ("resourceVersion", "generation")}
        for name in _OURS:
            if name in metadata:
                metadata[name] = dict(sorted(metadata[name].items()))
        return go_json({**wanted, "metadata": metadata})

    async def release(self, records: Records, stored: Resource, *, dry_run: bool) -> str:
        """Do what comes before the deletion of a resource; returns what is worth a word."""
        return ""


def damaged(key: str, why: object) -> DamagedError:
    """The error that a record cannot be understood."""
    return DamagedError(f"cannot read the record {key}: {why}; another program wrote it: correct or delete it")


def field(resource: Resource, *path: str, default: str = "") -> str:
    """A field of a resource as Go's templates print it; ``default`` if it is absent or empty."""
    value: Any = resource
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return default if value is None or value == "" else str(value)
