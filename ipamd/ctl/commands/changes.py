"""Commands that change records: ``apply``, ``create``, ``replace``, ``delete``, ``patch``; ``diff`` only looks."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from ipamd.ctl import completion
from ipamd.ctl.command import command
from ipamd.ctl.errors import CommandError, UsageError
from ipamd.ctl.resources.kind import Kind
from ipamd.ctl.resources.kinds import KINDS, KindType
from ipamd.ctl.target import Target

F = TypeVar("F", bound=Callable[..., Any])

_DONE = {"apply": "applied", "create": "created", "replace": "replaced", "delete": "deleted", "patch": "patched"}
_DRY = " (dry run: nothing was changed)"


def _files(*, required: bool) -> Callable[[F], F]:
    text = "file of YAML or JSON, folder of such files, or - for standard input; may be given more than once"
    return click.option(
        "-f", "--filename", "files", metavar="FILE", multiple=True, required=required, help=text, type=str
    )


def _dry_run(function: F) -> F:
    return click.option("--dry-run", is_flag=True, help="check everything and change nothing")(function)


def _say(verb: str, kinds: Sequence[Kind], *, dry_run: bool) -> None:
    """The words of calicoctl."""
    of = f" '{kinds[0].name}'" if len({kind.name for kind in kinds}) == 1 else ""
    click.echo(f"Successfully {_DONE[verb]} {len(kinds)}{of} resource(s){_DRY if dry_run else ''}")


async def _write(verb: str, target: Target, files: Sequence[str], *, dry_run: bool) -> None:
    from ipamd.ctl.changes import commit, prepare
    from ipamd.ctl.manifests import read_manifests

    manifests = read_manifests(files, KINDS)
    async with target.records() as records:
        for manifest in manifests[1:]:  # the others before the first is written
            await prepare(verb, records, manifest.kind, manifest.resource)
        for done, manifest in enumerate(manifests):
            try:
                wanted = await prepare(verb, records, manifest.kind, manifest.resource)
                if not dry_run:
                    await commit(verb, records, wanted)
            except CommandError as error:
                raise _partly(error, verb, done, len(manifests)) from error
    _say(verb, [manifest.kind for manifest in manifests], dry_run=dry_run)


def _partly(error: CommandError, verb: str, done: int, total: int) -> CommandError:
    """The error with how far the command came before it."""
    if total == 1:
        return error
    return type(error)(f"{error}\n  {done} of {total} resources {_DONE[verb]} before, {total - done - 1} not tried")


_APPLY = """\
  ipamctl apply -f pools.yaml
  ipamctl apply -f pools/ --dry-run
  ipamctl get ippool default-ipv4-ippool -o yaml | ipamctl apply -f -
"""


@command("apply", _APPLY)
@_files(required=True)
@_dry_run
async def apply(target: Target, files: tuple[str, ...], dry_run: bool) -> None:  # noqa: FBT001 - click passes names
    """Create records, or replace those that exist."""
    await _write("apply", target, files, dry_run=dry_run)


@command("create", "  ipamctl create -f pools.yaml\n")
@_files(required=True)
@_dry_run
async def create(target: Target, files: tuple[str, ...], dry_run: bool) -> None:  # noqa: FBT001 - click passes names
    """Create records, none of which may exist."""
    await _write("create", target, files, dry_run=dry_run)


@command("replace", "  ipamctl replace -f pools.yaml\n")
@_files(required=True)
@_dry_run
async def replace(target: Target, files: tuple[str, ...], dry_run: bool) -> None:  # noqa: FBT001 - click passes names
    """Replace records, all of which must exist."""
    await _write("replace", target, files, dry_run=dry_run)


_DELETE = """\
  ipamctl delete ippool temporary-pool
  ipamctl delete ippool temporary-pool --dry-run
  ipamctl delete -f pools.yaml
"""


@command("delete", _DELETE)
@click.argument("kind", type=KindType(), required=False)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=completion.of_kind)
@_files(required=False)
@_dry_run
async def delete(
    target: Target,
    kind: Kind | None,
    names: tuple[str, ...],
    files: tuple[str, ...],
    dry_run: bool,  # noqa: FBT001 - click passes names
) -> None:
    """Delete records. A pool is disabled and taken from its nodes first.

    Pods keep the addresses that they have from a deleted pool; how many these are is told on standard error.
    """
    from ipamd.ctl.changes import delete as delete_one
    from ipamd.ctl.manifests import read_manifests

    if bool(files) == bool(kind):
        raise UsageError("cannot delete: name a kind and names, or files with -f")
    if kind is not None and not names:
        raise UsageError(f"cannot delete: name the {kind.name} to delete; `ipamctl get {kind.called[-1]}` lists them")
    wanted = [(kind, name) for name in names] if kind else [(m.kind, m.name) for m in read_manifests(files, KINDS)]
    async with target.records() as records:
        for done, (each, name) in enumerate(wanted):
            try:
                told = await delete_one(records, each, name, dry_run=dry_run)
            except CommandError as error:
                raise _partly(error, "delete", done, len(wanted)) from error
            if told:
                click.echo(told, err=True)
    _say("delete", [each for each, _name in wanted], dry_run=dry_run)


_PATCH = """\
  ipamctl patch ippool default-ipv4-ippool -p '{"spec": {"disabled": true}}'
  ipamctl patch node node1 -p '{"metadata": {"labels": {"rack": "0"}}}'
"""


@command("patch", _PATCH)
@click.argument("kind", type=KindType())
@click.argument("name", shell_complete=completion.of_kind)
@click.option("-p", "--patch", required=True, metavar="JSON", help="fields to set; null removes one")
@click.option(
    "-t",
    "--type",
    "form",
    type=click.Choice(["strategic", "merge"]),
    default="strategic",
    help="the same, for our kinds",
)
@_dry_run
async def patch(target: Target, kind: Kind, name: str, patch: str, form: str, dry_run: bool) -> None:  # noqa: FBT001 - click passes names
    """Change fields of a record."""
    from ipamd.ctl.changes import check_writable, commit, merged, name_of, prepare

    check_writable("patch", kind)
    asked = _patch(kind, name, patch)
    async with target.records() as records:
        found = (await records.read([kind.key(name)])).records
        if not found:
            raise kind.missing("patch", name)
        stored = kind.decode(found[0])
        given = merged(stored, asked)
        if name_of(given) != name:
            raise CommandError(f"cannot patch {kind.name} {name}: its name cannot be changed; create another")
        given["metadata"] = {"labels": {}, "annotations": {}, **given["metadata"]}
        wanted = await prepare("patch", records, kind, given)
        if not dry_run:
            await commit("patch", records, wanted)
    click.echo(f"Successfully patched 1 '{kind.name}' resource{_DRY if dry_run else ''}")


def _patch(kind: Kind, name: str, text: str) -> dict[str, Any]:
    example = """write it as '{"spec": {"disabled": true}}'"""
    try:
        asked = json.loads(text)
    except json.JSONDecodeError as error:
        at = (
            f"at character {error.pos + 1} ({text[error.pos : error.pos + 20]!r})"
            if error.pos < len(text)
            else "at its end"
        )
        raise CommandError(
            f"cannot patch {kind.name} {name}: the patch is not JSON, {at}: {error.msg.lower()}; {example}"
        ) from error
    if not isinstance(asked, dict):
        raise CommandError(f"cannot patch {kind.name} {name}: the patch is no object; {example}")
    return asked


_DIFF = """\
  ipamctl diff -f pools.yaml
"""


@command("diff", _DIFF)
@_files(required=True)
async def diff(target: Target, files: tuple[str, ...]) -> None:
    """Show what `apply` would change, and end with 1 if it is anything."""
    from difflib import unified_diff

    from ipamd.ctl.changes import prepare
    from ipamd.ctl.manifests import read_manifests
    from ipamd.ctl.output import yaml_of

    changed = False
    async with target.records() as records:
        for manifest in read_manifests(files, KINDS):
            wanted = await prepare("diff", records, manifest.kind, manifest.resource)
            before = wanted.before
            old = [] if before is None else yaml_of(before).splitlines()
            stored = f"stored {manifest.kind.called[-1]}/{wanted.name}"
            for line in unified_diff(old, yaml_of(wanted.resource).splitlines(), stored, manifest.where, lineterm=""):
                changed = True
                click.echo(line)
    if changed:
        raise click.exceptions.Exit(1)
