"""``label``: labels of nodes, by which pools choose them."""

import click

from ipamd.ctl import completion
from ipamd.ctl.command import command
from ipamd.ctl.errors import CommandError, UsageError
from ipamd.ctl.resources.kind import Kind
from ipamd.ctl.resources.kinds import KindType
from ipamd.ctl.target import Target

_LABEL = """\
  ipamctl label node node1 rack=0
  ipamctl label node node1 rack=1 --overwrite
  ipamctl label node node1 rack-
"""


@command("label", _LABEL)
@click.argument("kind", type=KindType())
@click.argument("name", shell_complete=completion.of_kind)
@click.argument("labels", metavar="KEY=VALUE|KEY-...", nargs=-1, required=True)
@click.option("--overwrite", is_flag=True, help="change labels that have another value")
async def label(target: Target, kind: Kind, name: str, labels: tuple[str, ...], overwrite: bool) -> None:  # noqa: FBT001 - click passes names
    """Set labels of a record, or remove them."""
    from ipamd.ctl.changes import check_writable, commit, prepare

    check_writable("label", kind)
    wanted = dict(_label(text) for text in labels)
    async with target.records() as records:
        found = (await records.read([kind.key(name)])).records
        if not found:
            raise kind.missing("label", name)
        resource = kind.decode(found[0])
        before: dict[str, str] = resource["metadata"].get("labels") or {}
        for key, value in wanted.items():
            if value is not None and before.get(key, value) != value and not overwrite:
                raise CommandError(
                    f"cannot label {kind.name} {name}: it has {key}={before[key]} already; change it with --overwrite"
                )
        after = {key: value for key, value in {**before, **wanted}.items() if value is not None}
        resource["metadata"] = {**resource["metadata"], "labels": after}
        await commit("label", records, await prepare("label", records, kind, resource))
    for key, value in wanted.items():
        click.echo(f"Successfully {'removed' if value is None else 'set'} label {key} on {kind.called[0]} {name}")


def _label(text: str) -> tuple[str, str | None]:
    """A label and its value; None: to be removed."""
    from ipamd.core.selector import parse_labels

    if text.endswith("-") and "=" not in text:
        return text[:-1], None
    try:
        ((key, value),) = parse_labels(text).items()
    except ValueError as error:
        raise UsageError(f"cannot read the label {text!r}: write it as rack=0, or rack- to remove it") from error
    return key, value
