"""What a kind of resource is to commands, and how one is read: a resource as plain values (dict, list, str, ...).

A resource's ``metadata.resourceVersion`` is the revision of its record, as with Calico; it is shown, never stored.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from ipamd.core.keys import RESOURCES
from ipamd.ctl.errors import CommandError
from ipamd.ctl.output import Sheet
from ipamd.ctl.target import Records
from ipamd.store.base import Record

Resource = dict[str, Any]

API = "projectcalico.org/v3"


class Listing(Struct, frozen=True):
    """Resources as they stood at ``revision``, sorted by name."""

    revision: int
    resources: list[Resource]


class Kind:
    """A kind whose records are resources under a common prefix; the others override how they are read.

    ``called`` are its names on the command line, in lower case, the plural first.
    """

    def __init__(self, name: str, called: Sequence[str], sheet: Sheet) -> None:
        self.name, self.called, self.sheet = name, tuple(called), sheet

    def key(self, name: str) -> str:
        """The key of the record of this name."""
        return f"{RESOURCES}{self.called[0]}/{name}"

    async def read(self, records: Records, names: Sequence[str]) -> Listing:
        """Those of these names, or all; raises CommandError for the first that does not exist."""
        if names:
            snapshot = await records.read([self.key(name) for name in names])
        else:
            snapshot = await records.read((), (self.key(""),))
        found = {record.key: record for record in snapshot.records}
        for name in names:
            if self.key(name) not in found:
                raise CommandError(
                    f"cannot get {self.name} {name}: it does not exist; "
                    f"`ipamctl get {self.called[-1]}` lists those that do"
                )
        wanted = [self.key(name) for name in names] or sorted(found)
        return Listing(snapshot.revision, [decode(found[key]) for key in wanted])

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


def decode(record: Record) -> Resource:
    """The resource that a record holds, with its version. Raises CommandError."""
    try:
        resource = msgspec.json.decode(record.value, type=dict[str, Any])
        return {**resource, "metadata": _versioned(resource["metadata"], record.revision)}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CommandError(
            f"cannot read the record {record.key}: {error}; it was written by another program; correct or delete it"
        ) from error


def _versioned(metadata: dict[str, Any], revision: int) -> dict[str, Any]:
    """Metadata with the version where Go's programs print it: after name and uid."""
    names: tuple[str, ...] = ("name", "uid")
    first = {name: metadata[name] for name in names if name in metadata}
    return {**first, "resourceVersion": str(revision), **{k: v for k, v in metadata.items() if k not in first}}


def field(resource: Resource, *path: str, default: str = "") -> str:
    """A field of a resource as Go's templates print it; ``default`` if it is absent or empty."""
    value: Any = resource
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return default if value is None or value == "" else str(value)
