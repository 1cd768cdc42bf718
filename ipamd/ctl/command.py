"""What all commands share: how they are declared, which flags each of them takes, how they are run and end.

A command is an ``async`` function whose first parameter is the ``Target``. The flags that say what to speak to may
stand before the command's name or after it.
"""

import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from ipamd.config import KEYS

if TYPE_CHECKING:
    from ipamd.ctl.target import Target

P = ParamSpec("P")

_ETCD = [key for key in KEYS.values() if key.table == "etcd"]
_SHORT = re.compile(r"^(-[A-Za-z])=")
_NAME = "ctl_{}"
"""How a flag of ours is called among a command's parameters."""


def target_options(*, hidden: bool) -> list[click.Parameter]:
    """The flags that say what to speak to."""
    socket = "socket of the daemon (default: that of the configuration)"
    config = "configuration to take the socket and etcd's certificates from"
    db = "work on this file of the embedded store, while no daemon runs"
    options: list[click.Parameter] = [
        click.Option(["--socket", _NAME.format("socket")], metavar="PATH", help=socket, hidden=hidden),
        click.Option(["--config", _NAME.format("config")], metavar="FILE", help=config, hidden=hidden),
        click.Option(["--db", _NAME.format("db")], metavar="FILE", help=db, hidden=hidden),
    ]
    for key in _ETCD:
        what = "work on these etcd members directly" if key.name == "endpoints" else key.help
        name = _NAME.format(f"etcd_{key.name}")
        options.append(click.Option([key.flag, name], metavar="VALUE", help=what, hidden=hidden))
    return options


def take_target(context: click.Context) -> None:
    """Take our flags out of a command's parameters, to those given before its name."""
    given: dict[str, str] = context.ensure_object(dict)
    for option in target_options(hidden=True):
        value = context.params.pop(option.name or "", None)
        if value is not None:
            given[option.name or ""] = value


def given_of(context: click.Context) -> dict[str, str]:
    """The same where the command line is not run but completed: as it stands so far."""
    outer = {} if context.parent is None else given_of(context.parent)
    ours = {option.name or "": context.params.get(option.name or "") for option in target_options(hidden=True)}
    return {**outer, **{name: value for name, value in ours.items() if value is not None}}


def target_of(given: Mapping[str, str]) -> "Target":
    """What our flags name."""
    from ipamd.ctl.target import Target

    etcd = {key.path: given[field] for key in _ETCD if (field := _NAME.format(f"etcd_{key.name}")) in given}
    socket, config, db = (given.get(_NAME.format(each)) for each in ("socket", "config", "db"))
    return Target(socket, config, db, etcd)


class Command(click.Command):
    """A command that takes the flags of the target too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += target_options(hidden=True)

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Read the flags; ``-o=yaml`` is ``-o yaml``, as for kubectl."""
        return super().parse_args(context, [_SHORT.sub(r"\1", each) for each in args])

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        take_target(context)
        return super().invoke(context)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples as they stand, and where the other flags are told."""
        if self.epilog:
            formatter.write(f"\nExamples:\n{self.epilog.rstrip()}\n")
        formatter.write("\n`ipamctl --help` has the flags that say which daemon or store to speak to.\n")


class Group(click.Group):
    """A command of several, as ``ipamctl ipam show``; its epilog are examples."""

    command_class = Command

    def format_epilog(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples as they stand."""
        formatter.write(f"\nExamples:\n{self.epilog}")


def command(name: str, examples: str) -> Callable[[Callable[Concatenate[Any, P], Awaitable[None]]], Command]:
    """Declare a command: an ``async`` function of the target and the command's own parameters.

    Its docstring is the help; ``examples`` are lines such as ``  ipamctl get ippool -o wide``, which tests run.
    """

    def declare(function: Callable[Concatenate[Any, P], Awaitable[None]]) -> Command:
        @click.pass_context
        def run(context: click.Context, /, *args: P.args, **kwargs: P.kwargs) -> None:
            import trio

            target = target_of(context.obj or {})

            async def main() -> None:
                await function(target, *args, **kwargs)

            try:
                trio.run(main)
                sys.stdout.flush()
            except BrokenPipeError:  # who reads our output has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

        run.__doc__ = function.__doc__
        for parameter in getattr(function, "__click_params__", ()):
            run.__click_params__ = [*getattr(run, "__click_params__", ()), parameter]  # type: ignore[attr-defined]
        return click.command(name, cls=Command, epilog=examples)(run)

    return declare
