"""Blocks as grids of cells, one for each address, side by side as far as they fit. Pure functions of what is drawn."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

import click
from msgspec import Struct

from ipamd.core.address import Cidr, format_address
from ipamd.core.census import Cell


class Look(Struct, frozen=True):
    """How a cell is drawn: a character that says it without a colour, and that colour."""

    symbol: str
    colour: str
    words: str


LOOKS: dict[Cell, Look] = {
    "pod": Look("P", "green", "pod"),
    "tunnel": Look("T", "cyan", "tunnel"),
    "borrowed in": Look("<", "bright_green", "borrowed in"),
    "borrowed out": Look(">", "yellow", "borrowed out"),
    "reserve": Look("r", "blue", "in reserve"),
    "cooling": Look("c", "magenta", "cooling"),
    "quarantined": Look("q", "red", "quarantined"),
    "reserved": Look("x", "white", "reserved"),
    "other": Look("w", "white", "set aside for Windows"),
    "free": Look(".", "bright_black", "free"),
}
"""In the order of the legend and of a block's counts."""

_GROUP, _ROW, _BETWEEN, _NARROWEST = 8, 64, 3, 36
"""Cells without a gap; the most cells of a row; blanks between two blocks; the least width of one of several."""

_TIED = "\xa0"
"""A blank at which no line is folded."""


class Drawn(Struct, frozen=True):
    """A block to be drawn: its owner (``host:<node>``, "" for none), its cells, and by node how many are borrowed."""

    cidr: Cidr
    affinity: str
    cells: Sequence[Cell]
    borrowers: Counter[str]


def picture(blocks: Sequence[Drawn], width: int, *, colours: bool) -> Iterator[str]:
    """The lines of blocks of one IP version, none longer than ``width`` if a cell and its address fit at all."""
    label = max(len(_address(block, len(block.cells) - 1)) for block in blocks)
    across = min(_ROW, max(len(block.cells) for block in blocks))
    while across > 1 and label + 1 + _length(across) > width:
        across //= 2
    label = max(len(_address(block, start)) for block in blocks for start in range(0, len(block.cells), across))
    needed = max(label + 1 + _length(across), _NARROWEST)
    beside = min(len(blocks), max(1, (width + _BETWEEN) // (needed + _BETWEEN)))
    wide = (width + _BETWEEN) // beside - _BETWEEN
    for start in range(0, len(blocks), beside):
        some = blocks[start : start + beside]
        heads = [_folded(_head(block), wide) for block in some]
        grids = [list(_grid(block, label, across, colours=colours)) for block in some]
        yield from _side_by_side(heads, wide)
        yield from _side_by_side(grids, wide)
        yield ""


def _head(block: Drawn) -> str:
    """A block's CIDR and owner, how many of its addresses are what, and who borrows."""
    counts = Counter(block.cells)
    told = ", ".join(f"{counts[cell]}{_TIED}{_words(cell, counts[cell])}" for cell in LOOKS if counts[cell])
    who = ", ".join(f"{node}{_TIED}{many}" for node, many in sorted(block.borrowers.items()))
    whose = block.affinity.removeprefix("host:") or "no node"
    return f"{block.cidr} of{_TIED}{whose}: {told}" + (f"; borrowed by {who}" if who else "")


def _folded(text: str, width: int) -> list[str]:
    lines = textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)
    return [line.replace(_TIED, " ") for line in lines]


def _words(cell: Cell, number: int) -> str:
    words = LOOKS[cell].words.replace(" ", _TIED)
    return f"{words}s" if number != 1 and cell in ("pod", "tunnel") else words


def legend(width: int, *, colours: bool) -> Iterator[str]:
    """What the symbols mean."""
    line, length = "", 0
    for look in LOOKS.values():
        entry = len(look.words) + 2
        if line and length + 3 + entry > width:
            yield line
            line, length = "", 0
        line += ("   " if line else "") + f"{_drawn(look, colours=colours)} {look.words}"
        length += entry + (3 if length else 0)
    yield line


def _grid(block: Drawn, label: int, across: int, *, colours: bool) -> Iterator[str]:
    symbols = {cell: _drawn(look, colours=colours) for cell, look in LOOKS.items()}
    for start in range(0, len(block.cells), across):
        row = [symbols[cell] for cell in block.cells[start : start + across]]
        groups = ("".join(row[at : at + _GROUP]) for at in range(0, len(row), _GROUP))
        yield f"{_address(block, start):<{label}} {' '.join(groups)}"


def _side_by_side(columns: Sequence[Sequence[str]], wide: int) -> Iterator[str]:
    for at in range(max(map(len, columns))):
        line = ""
        for number, column in enumerate(columns):
            text = column[at] if at < len(column) else ""
            line += " " * (number * (wide + _BETWEEN) - len(click.unstyle(line))) + text
        yield line.rstrip()


def _length(cells: int) -> int:
    return cells + (cells - 1) // _GROUP


def _drawn(look: Look, *, colours: bool) -> str:
    return click.style(look.symbol, fg=look.colour) if colours else look.symbol


def _address(block: Drawn, ordinal: int) -> str:
    return format_address(block.cidr.family, block.cidr.base + ordinal)
