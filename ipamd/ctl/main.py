"""The command line ``ipamctl``.

Exit codes: 0 done, 1 refused, 2 a mistake on the command line, 3 the daemon or the store cannot be reached. What was
asked for goes to standard output, everything else to standard error. A command's module is imported when it is named.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword
from typing import Any

import click

from ipamd.config import suggest
from ipamd.ctl.command import Group, take_target, target_options
from ipamd.ctl.errors import DONE, REFUSED, USAGE, CommandError

COMMANDS: dict[str, dict[str, str]] = {
    "Records": {
        "get": "ipamd.ctl.commands.records",
        "apply": "ipamd.ctl.commands.changes",
        "create": "ipamd.ctl.commands.changes",
        "replace": "ipamd.ctl.commands.changes",
        "patch": "ipamd.ctl.commands.changes",
        "delete": "ipamd.ctl.commands.changes",
        "diff": "ipamd.ctl.commands.changes",
        "label": "ipamd.ctl.commands.label",
    },
    "Addresses": {
        "ipam": "ipamd.ctl.commands.ipam",
    },
    "Node": {
        "status": "ipamd.ctl.commands.node",
        "top": "ipamd.ctl.commands.top",
        "explain": "ipamd.ctl.commands.explain",
        "events": "ipamd.ctl.commands.events",
        "reserve": "ipamd.ctl.commands.node",
        "drain": "ipamd.ctl.commands.node",
        "undrain": "ipamd.ctl.commands.node",
        "gc": "ipamd.ctl.commands.gc",
        "import": "ipamd.ctl.commands.takeover",
        "bundle": "ipamd.ctl.commands.bundle",
    },
    "About": {
        "version": "ipamd.ctl.commands.about",
        "completion": "ipamd.ctl.commands.about",
    },
}
"""Sections of the help; in each the commands, and the module in which the command's name is the command."""

_EXAMPLES = """
Examples:
  ipamctl get ippool -o wide
  ipamctl get ippools -o yaml > pools.yaml
  ipamctl apply -f pools.yaml --dry-run
  ipamctl patch ippool default-ipv4-ippool -p '{"spec": {"disabled": true}}'
  ipamctl --etcd-endpoints http://10.0.0.1:2379 get ippool
  eval "$(ipamctl completion bash)"

Exit codes: 0 done, 1 refused, 2 a mistake on the command line, 3 the daemon or the store cannot be reached.
"""


class _Root(Group):
    """The commands of the table, imported when they are named."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """All commands, in the order of the table."""
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """The command of this name."""
        for section in COMMANDS.values():
            if name in section:
                found: click.Command = getattr(import_module(section[name]), _attribute(name))
                return found
        return None

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the line names."""
        if args and not args[0].startswith("-") and self.get_command(context, args[0]) is None:
            known = self.list_commands(context)
            raise click.UsageError(f"unknown command {args[0]!r}{suggest(args[0], known)}", context)
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section."""
        for title, section in COMMANDS.items():
            commands = {name: self.get_command(context, name) for name in section}
            rows = [(name, found.get_short_help_str(80)) for name, found in commands.items() if found is not None]
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples."""
        formatter.write(_EXAMPLES)

    def invoke(self, context: click.Context) -> Any:
        """Run the command that the line names."""
        take_target(context)
        return super().invoke(context)


def _attribute(name: str) -> str:
    """What a command is called in its module."""
    return f"{name}_" if iskeyword(name) else name.replace("-", "_")


cli = _Root(
    "ipamctl",
    help="See and steer IP address management: pools, blocks, addresses, and the daemon of a node.",
    params=target_options(hidden=False),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (default: that of the process) and return its exit code."""
    try:
        ended = cli.main(None if argv is None else list(argv), prog_name="ipamctl", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        return _tell(error.format_message(), USAGE if isinstance(error, click.UsageError) else REFUSED)
    except CommandError as error:
        return _tell(str(error), error.code)
    except (KeyboardInterrupt, click.Abort):
        return _tell("interrupted", REFUSED)
    return ended if isinstance(ended, int) else DONE


def _tell(words: str, code: int) -> int:
    from ipamd.ctl.output import tell

    tell(f"ipamctl: {words}".splitlines(), err=True)
    return code
