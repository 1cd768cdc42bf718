"""The manual page and the reference page, made of the commands themselves: ``python -m ipamd.ctl.pages``.

Own code instead of click-man: that makes a page for each command, and breaks the lines of examples and of paragraphs.
"""

import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from ipamd import __version__
from ipamd.ctl.main import COMMANDS, cli

FOLDER = Path(__file__).resolve().parent.parent.parent / "docs"
MAN, REFERENCE = FOLDER / "ipamctl.1", FOLDER / "reference" / "ipamctl.md"

_CODES = (
    ("0", "done"),
    ("1", "refused; a check, a comparison or a look at readiness that found something"),
    ("2", "a mistake on the command line, or in a file that it names"),
    ("3", "the daemon or the store cannot be reached"),
)


def commands() -> Iterator[tuple[str, list[tuple[str, click.Command]]]]:
    """The sections of the help, each with its commands by the words that name them, those of groups after the group."""
    context = click.Context(cli, info_name="ipamctl")
    for title, section in COMMANDS.items():
        found: list[tuple[str, click.Command]] = []
        for name in section:
            command = cli.get_command(context, name)
            if command is not None:
                found += _below(f"ipamctl {name}", command)
        yield title, found


def _below(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _below(f"{words} {name}", inner)


def _usage(words: str, command: click.Command) -> str:
    context = click.Context(command, info_name=words)
    return " ".join([words, *command.collect_usage_pieces(context)])


def _options(command: click.Command) -> Iterator[tuple[str, str]]:
    """Each flag as one types it, and what it is for."""
    context = click.Context(command)
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            record = parameter.get_help_record(context)
            if record is not None:
                yield record


def _paragraphs(command: click.Command) -> list[str]:
    """The help, a paragraph a line."""
    return [" ".join(part.split()) for part in cleandoc(command.help or "").split("\n\n")]


def _examples(command: click.Command) -> str:
    text = command.epilog or ""
    return "\n".join(line.removeprefix("  ") for line in text.strip("\n").splitlines())


# --- Markdown -----------------------------------------------------------------------------------------------------


def reference() -> str:
    """The reference page, in Markdown."""
    return "\n".join(_reference()) + "\n"


def _reference() -> Iterator[str]:
    yield from (
        "# ipamctl: all commands",
        "",
        "Made of the commands' own help by `make pages`. [What they are for](../ipamctl.md).",
    )
    yield from (
        "",
        "## Flags of all commands",
        "",
        "They say which daemon or store to speak to, before or after the command's name.",
        "",
    )
    yield from _table(cli)
    yield from ("", "## Exit codes", "", "| code | means |", "|---|---|")
    yield from (f"| {code} | {what} |" for code, what in _CODES)
    for title, found in commands():
        yield from ("", f"## {title}")
        for words, command in found:
            yield from ("", f"### {words}", "", "```", _usage(words, command), "```")
            for paragraph in _paragraphs(command):
                yield from ("", paragraph)
            if any(_options(command)):
                yield ""
                yield from _table(command)
            if command.epilog:
                yield from ("", "```sh", _examples(command), "```")


def _table(command: click.Command) -> Iterator[str]:
    yield from ("| flag | for |", "|---|---|")
    for flag, what in _options(command):
        yield f"| `{flag}` | {what} |".replace("TITLE|", "TITLE\\|").replace("true|false", "true\\|false")


# --- roff ---------------------------------------------------------------------------------------------------------


def man() -> str:
    """The manual page ``ipamctl(1)``, in man's macros."""
    return "\n".join(_man()) + "\n"


def _man() -> Iterator[str]:
    yield '.\\" Made of the commands\' own help by "make pages".'
    yield f'.TH IPAMCTL 1 "" "ipamd {__version__}" "ipamd"'
    yield from (
        ".SH NAME",
        "ipamctl \\- " + _roff(_paragraphs(cli)[0][0].lower() + _paragraphs(cli)[0][1:].rstrip(".")),
    )
    yield from (".SH SYNOPSIS", ".B ipamctl", "[\\fIflags\\fR] \\fIcommand\\fR [\\fIarguments\\fR]")
    yield from (
        ".SH DESCRIPTION",
        "Commands ask the daemon of this node over its socket, and through it its store; or,",
    )
    yield _roff("with --etcd-endpoints or --db, they work on a store without a daemon.")
    yield from (".SH FLAGS OF ALL COMMANDS", "They stand before the command's name or after it.")
    yield from _flags(cli)
    for title, found in commands():
        yield f".SH {title.upper()}"
        for words, command in found:
            yield from (f".SS {_roff(_usage(words, command))}", *_text(command))
    yield ".SH EXIT STATUS"
    for code, what in _CODES:
        yield from (".TP", f".B {code}", _roff(what))
    yield from (".SH SEE ALSO", "\\fBipamd run \\-\\-help\\fR, \\fBcalicoctl\\fR, \\fBkubectl\\fR(1)")


def _text(command: click.Command) -> Iterator[str]:
    for number, paragraph in enumerate(_paragraphs(command)):
        yield from ((".PP",) if number else ())
        yield _roff(paragraph)
    yield from _flags(command)
    if command.epilog:
        yield from (".PP", "Examples:", ".PP", ".RS 4", ".nf", _roff(_examples(command)), ".fi", ".RE")


def _flags(command: click.Command) -> Iterator[str]:
    for flag, what in _options(command):
        yield from (".TP", f"\\fB{_roff(flag)}\\fR", _roff(what))


_ESCAPED = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "^": "\\(ha", "~": "\\(ti"}
"""What roff would print as another character: an example is to be copied from the page."""


def _roff(text: str) -> str:
    """Text as roff prints it as it is; words in backticks in bold."""
    for character, escaped in _ESCAPED.items():
        text = text.replace(character, escaped)
    parts = re.sub(r"`([^`]*)`", r"\0\1\0", text).split("\0")
    bold = "".join(f"\\fB{part}\\fR" if number % 2 else part for number, part in enumerate(parts))
    return re.sub(r"^(\.)", r"\\&\1", bold, flags=re.MULTILINE)


def write() -> None:
    """Write both pages."""
    REFERENCE.parent.mkdir(exist_ok=True)
    REFERENCE.write_text(reference())
    MAN.write_text(man())


if __name__ == "__main__":
    write()
