"""Changes of resources: create, replace, apply, patch, delete; each a compare-and-swap of one record.

Nothing is lost when two change the same record at once: the second is told what the first did, and decides.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from ipamd.core.records import rfc3339
from ipamd.ctl.errors import CommandError, DamagedError
from ipamd.ctl.resources.fields import bad_name, differences
from ipamd.ctl.resources.kind import Kind, Resource
from ipamd.ctl.target import Records
from ipamd.store.base import Change, Outcome, Record

MUST_EXIST, MUST_NOT_EXIST = ("replace", "patch"), ("create",)
"""What a verb asks of the record; ``apply`` takes both."""


class Wanted(Struct, frozen=True):
    """What a record is to become: ``stored`` is what it is now (None: absent), ``resource`` what it will be."""

    kind: Kind
    name: str
    stored: Record | None
    resource: Resource
    value: bytes

    @property
    def before(self) -> Resource | None:
        """The stored resource."""
        return None if self.stored is None else self.kind.decode(self.stored)


def check_writable(verb: str, kind: Kind) -> None:
    """Refuse a kind that can only be looked at; raises CommandError."""
    if not kind.writable:
        raise CommandError(
            f"cannot {verb} {kind.name}: it can only be looked at; nodes claim blocks themselves, "
            "and those of a pool that is deleted are released"
        )


def check(verb: str, kind: Kind, given: Resource, stored: Resource | None = None) -> None:
    """Refuse a resource that is wrong by itself, or as a change of the stored one; raises CommandError."""
    _refuse(verb, kind, given, list(kind.problems(given, stored)))


def _refuse(verb: str, kind: Kind, given: Resource, problems: Sequence[str]) -> None:
    if problems:
        name = name_of(given)
        called = f"{kind.name} {name}" if name else f"an {kind.name}"
        separator = " " if len(problems) == 1 else "\n  "
        raise CommandError(f"cannot {verb} {called[:80]}:{separator}" + "\n  ".join(problems))


def name_of(given: Resource) -> str:
    """The name of a resource as somebody gave it; "" if it has none."""
    metadata = given.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else ""


async def prepare(verb: str, records: Records, kind: Kind, given: Resource) -> Wanted:
    """Work out what a record is to become, against what is stored now. Raises CommandError."""
    check_writable(verb, kind)
    name = name_of(given)
    if not name or any(bad_name(name)):
        check(verb, kind, given)
    found = (await records.read([kind.key(name)])).records
    stored = found[0] if found else None
    before = None if stored is None else kind.decode(stored)
    if before is None and verb in MUST_EXIST:
        raise kind.missing(verb, name)
    if before is not None and verb in MUST_NOT_EXIST:
        raise CommandError(f"cannot {verb} {kind.name} {name}: it exists already; change it with apply or replace")
    check(verb, kind, given, before)
    _check_version(verb, kind, given, before)
    wanted = kind.complete(given, before, str(uuid.uuid4()), rfc3339(time.time_ns()))
    _refuse(verb, kind, given, await kind.conflicts(records, wanted, before))
    return Wanted(kind, name, stored, wanted, kind.encode(wanted, None if stored is None else stored.value))


def _check_version(verb: str, kind: Kind, given: Resource, before: Resource | None) -> None:
    """Refuse what was made of another version than the stored one, if it says of which."""
    version = given["metadata"].get("resourceVersion")
    if not version or (before is not None and before["metadata"]["resourceVersion"] == version):
        return
    name = given["metadata"]["name"]
    if before is None:
        raise CommandError(
            f"cannot {verb} {kind.name} {name}: it is of version {version}, and the record was deleted meanwhile; "
            "leave out metadata.resourceVersion to create it anew"
        )
    stored = before["metadata"]["resourceVersion"]
    mine = {**before, **{part: given[part] for part in ("spec",) if part in given}}
    differs = _changed(mine, before) or "in nothing but its version"
    raise CommandError(
        f"cannot {verb} {kind.name} {name}: it is of version {version}, and the record is at {stored} meanwhile "
        f"({differs}); begin with `ipamctl get {kind.called[-1]} {name} -o yaml`, "
        "or leave out metadata.resourceVersion to overwrite"
    )


async def commit(verb: str, records: Records, wanted: Wanted) -> None:
    """Write what was prepared, unless it is stored so already; raises CommandError if the record has changed since."""
    stored = wanted.stored
    if stored is not None and stored.value == wanted.value:
        return
    change = Change(wanted.kind.key(wanted.name), wanted.value, stored.revision if stored else 0)
    outcome = await records.commit([change])
    if outcome.chosen is None:
        raise _conflict(verb, wanted.kind, wanted.name, stored, outcome)


async def delete(records: Records, kind: Kind, name: str, *, dry_run: bool) -> str:
    """Delete a resource, after what its kind does before; returns what is worth a word. Raises CommandError."""
    check_writable("delete", kind)
    found = (await records.read([kind.key(name)])).records
    if not found:
        raise kind.missing("delete", name)
    try:
        told = await kind.release(records, kind.decode(found[0]), dry_run=dry_run)
    except DamagedError as error:  # else only another program could delete it
        told = f"{kind.name} {name} was no record of ours ({error}): only this record is deleted, no block was released"
    if dry_run:
        return told
    found = (await records.read([kind.key(name)])).records  # disabled meanwhile, by us
    if found:
        outcome = await records.commit([Change(found[0].key, None, found[0].revision)])
        if outcome.chosen is None:
            raise _conflict("delete", kind, name, found[0], outcome)
    return told


def _conflict(verb: str, kind: Kind, name: str, stored: Record | None, outcome: Outcome) -> CommandError:
    """The error that somebody else was quicker, with what they did."""
    now = outcome.records.get(kind.key(name))
    if now is None:
        did = "deleted it"
    elif stored is None:
        did = "created it"
    else:
        did = f"changed it ({_changed(kind.decode(stored), kind.decode(now))})"
    return CommandError(
        f"cannot {verb} {kind.name} {name}: somebody else {did} at this moment; "
        f"look with `ipamctl get {kind.called[-1]} -o yaml`, and try again"
    )


def _changed(before: Resource, after: Resource) -> str:
    """What differs, without the version, which always does."""
    return "; ".join(each for each in differences(before, after) if not each.startswith("metadata.resourceVersion"))


def merged(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396), which is what a strategic merge is for our kinds: none has lists with keys."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result
