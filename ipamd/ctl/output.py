"""The forms of ``-o``: a table, YAML and JSON as Calico's tools print them, names, JSONPath, columns of one's own.

A command gives its items (what the rows of a table are), the document (what YAML and JSON show) and the sheet (columns
and names); ``show`` prints them in the form that was asked for.
"""

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click
import msgspec
from click.shell_completion import CompletionItem
from msgspec import Struct

F = TypeVar("F", bound=Callable[..., Any])

FORMS = ("table", "wide", "yaml", "json", "name", "jsonpath=", "custom-columns=")


class Column(Struct, frozen=True):
    """A column: its title, and what stands in it for an item; ``wide``: only in the form ``wide``.

    ``right``: of a boxed table, for numbers.
    """

    title: str
    of: Callable[[Any], str]
    wide: bool = False
    right: bool = False


class Sheet(Struct, frozen=True):
    """How a command's items look as a table and as names.

    ``calico``: as calicoctl prints tables, with blanks after the last column and an empty line below; ``boxed``: as it
    prints those of ``ipam``; else as kubectl.
    """

    columns: tuple[Column, ...]
    name: Callable[[Any], str]
    calico: bool = False
    boxed: bool = False


class Output(Struct, frozen=True):
    """A form, and the template or the columns that it was given."""

    form: str = "table"
    text: str = ""


class OutputType(click.ParamType[Output]):
    """The value of ``-o``."""

    name = "form"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Output:
        """Read it; fails, as click does, for what is no form."""
        from ipamd.ctl.jsonpath import TemplateError, parse_template

        if isinstance(value, Output):
            return value
        form, equals, text = str(value).partition("=")
        if form + equals not in FORMS:
            self.fail(f"{value!r} is none of {', '.join(FORMS)}", param, context)
        if equals and not text:
            self.fail(f"{form} needs a value, as {_EXAMPLE[form]}", param, context)
        if form == "jsonpath":
            try:
                parse_template(text)
            except TemplateError as error:
                self.fail(f"cannot read the template: {error}", param, context)
        return Output(form, text)

    def shell_complete(self, _context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The forms that begin so."""
        return [CompletionItem(form) for form in FORMS if form.startswith(incomplete)]


_EXAMPLE = {
    "jsonpath": "jsonpath='{.items[*].metadata.name}'",
    "custom-columns": "custom-columns=NAME:.metadata.name,CIDR:.spec.cidr",
}


def output_option(function: F) -> F:
    """Add ``-o`` to a command, as the parameter ``output``."""
    text = "table, wide, yaml, json, name, jsonpath=TEMPLATE or custom-columns=TITLE:PATH,..."
    return click.option("-o", "--output", type=OutputType(), default="table", metavar="FORM", help=text)(function)


def show(output: Output, sheet: Sheet, items: Sequence[Any], document: object) -> None:
    """Print items in a form."""
    click.echo(render(output, sheet, items, document), nl=False)


def render(output: Output, sheet: Sheet, items: Sequence[Any], document: object) -> str:
    """What is printed, with the newline at its end where there is one. Raises click's BadParameter."""
    if output.form == "yaml":
        return yaml_of(document)
    if output.form == "json":
        return json_of(document)
    if output.form == "name":
        return "".join(f"{sheet.name(item)}\n" for item in items)
    if output.form == "jsonpath":
        from ipamd.ctl.jsonpath import expand, parse_template

        return expand(parse_template(output.text), document)
    if output.form == "custom-columns":
        columns = _custom(output.text, sheet)
        return _kubectl(columns, items)
    columns = [column for column in sheet.columns if output.form == "wide" or not column.wide]
    if sheet.boxed:
        return _boxed(columns, items)
    return _calico(columns, items) if sheet.calico else _kubectl(columns, items)


def _custom(text: str, sheet: Sheet) -> list[Column]:
    from ipamd.ctl.jsonpath import Path, TemplateError, parse_path, printed

    def at(path: Path) -> Callable[[Any], str]:
        return lambda item: ",".join(printed(each) for each in path.find(item)) or "<none>"

    known = {column.title: column for column in sheet.columns}
    columns = []
    for part in text.split(","):
        title, colon, path = part.partition(":")
        if not colon and title in known:  # as calicoctl has it
            columns.append(known[title])
            continue
        if not title or not path:
            raise _bad_columns(f"{part!r} is not TITLE:PATH, nor one of the columns {', '.join(known)}")
        try:
            columns.append(Column(title, at(parse_path(path.strip("{}")))))
        except TemplateError as error:
            raise _bad_columns(str(error)) from None
    return columns


def _bad_columns(why: str) -> click.BadParameter:
    return click.BadParameter(f"cannot read the columns: {why}", param_hint="-o")


def tell(lines: Iterable[str], *, err: bool = False) -> None:
    """Print lines of words; on a terminal what does not fit goes on in the next line, a little further in."""
    width = shutil.get_terminal_size().columns if (sys.stderr if err else sys.stdout).isatty() else 0
    for line in lines:
        click.echo("\n".join(folded(line, width) if width else [line]), err=err)


def folded(line: str, width: int) -> list[str]:
    """A line of words as lines of a width; no word is cut unless it is longer than that."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [line]


def counted(number: int, thing: str) -> str:
    """A number of things, in words."""
    plural = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number} {thing if number == 1 else plural}"


def _cells(columns: Sequence[Column], items: Sequence[Any]) -> list[list[str]]:
    return [[column.title for column in columns], *([column.of(item) for column in columns] for item in items)]


def _calico(columns: Sequence[Column], items: Sequence[Any]) -> str:
    """Every cell padded to the widest of its column and three blanks more, at least five (Go's tabwriter 5, 1, 3)."""
    rows = _cells(columns, items)
    widths = [max(2, *(len(row[at]) for row in rows)) + 3 for at in range(len(columns))]
    lines = ("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line}\n" for line in lines) + "\n"


def _kubectl(columns: Sequence[Column], items: Sequence[Any]) -> str:
    """The same, at least six, and nothing after the last column (Go's tabwriter 6, 4, 3)."""
    rows = _cells(columns, items)
    widths = [max(3, *(len(row[at]) for row in rows)) + 3 for at in range(len(columns))]
    widths[-1] = 0
    return "".join("".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + "\n" for row in rows)


def _boxed(columns: Sequence[Column], items: Sequence[Any]) -> str:
    """The same between lines of ``-`` and ``|``, the titles on the left also of numbers."""
    head, *rows = _cells(columns, items)
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(columns))]
    rule = "".join(f"+{'-' * (width + 2)}" for width in widths) + "+\n"
    lines = ["".join(f"| {cell:<{width}} " for cell, width in zip(head, widths, strict=True)) + "|\n"]
    for row in rows:
        cells = zip(columns, row, widths, strict=True)
        lines.append("".join(f"| {cell:{'>' if c.right else '<'}{width}} " for c, cell, width in cells) + "|\n")
    return "".join((rule, lines[0], rule, *lines[1:], rule))


def json_of(document: object) -> str:
    """JSON with two blanks a level."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def yaml_of(document: object) -> str:
    """YAML as Calico's tools print it: keys sorted, lists not indented, quotes only where they are needed."""
    from ipamd.ctl.yamls import dump

    return dump(document)


def age(seconds: float) -> str:
    """A time span as kubectl prints it: the two largest units while they are small, else the largest."""
    whole = max(0, int(seconds))
    for unit, size, below, smaller, small in _AGES:
        if whole < below:
            rest = whole % size // small if small else 0
            return f"{whole // size}{unit}" + (f"{rest}{smaller}" if rest else "")
    return f"{whole // _YEAR}y"


_YEAR = 365 * 86400
_AGES = (
    ("s", 1, 120, "", 0),
    ("m", 60, 600, "s", 1),
    ("m", 60, 3 * 3600, "", 0),
    ("h", 3600, 8 * 3600, "m", 60),
    ("h", 3600, 48 * 3600, "", 0),
    ("d", 86400, 8 * 86400, "h", 3600),
    ("d", 86400, 2 * _YEAR, "", 0),
    ("y", _YEAR, 8 * _YEAR, "d", 86400),
)
"""Unit, its size, until when it is used, and the smaller unit beside it (kubectl's duration.HumanDuration)."""
