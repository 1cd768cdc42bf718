"""A chart with logarithmic axes, or shares in percent upwards, as SVG: lines with marks, no dependency."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import ceil, floor, log10

from msgspec import Struct

WIDTH, HEIGHT = 520, 350
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 60, 50
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df", "#9a6700", "#bf3989")
MARKED = 20
"""A line of more points is drawn without marks."""

Points = Sequence[tuple[float, float]]


class Chart(Struct, frozen=True):
    """One picture: its title, what the axes say, and a line for each name.

    All values are above 0; with ``shares`` those upwards are percents.
    """

    title: str
    across: str
    up: str
    lines: Mapping[str, Points]
    shares: bool = False


def svg(charts: Sequence[Chart]) -> str:
    """The charts, one below the other."""
    parts = [
        f'<g transform="translate(0 {index * HEIGHT})">{"".join(_draw(chart))}</g>'
        for index, chart in enumerate(charts)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT * len(charts)}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


class _Axis:
    """Powers of ten around the values, laid out between two pixels."""

    def __init__(self, values: Iterable[float], begin: int, end: int) -> None:
        every = list(values)
        self.low, self.high = floor(log10(min(every))), ceil(log10(max(every)))
        self.high = max(self.high, self.low + 1)
        self._begin, self._end = begin, end

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self._begin + (log10(value) - self.low) / (self.high - self.low) * (self._end - self._begin)

    @property
    def ticks(self) -> list[float]:
        """The powers of ten."""
        return [10.0**power for power in range(self.low, self.high + 1)]


class _Shares:
    """0 to 100 percent between two pixels."""

    ticks = (0.0, 25.0, 50.0, 75.0, 100.0)

    def __init__(self, begin: int, end: int) -> None:
        self._begin, self._end = begin, end

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self._begin + value / 100 * (self._end - self._begin)


def _draw(chart: Chart) -> Iterable[str]:
    points = [point for line in chart.lines.values() for point in line]
    x = _Axis((point[0] for point in points), LEFT, WIDTH - RIGHT)
    low, high = HEIGHT - BOTTOM, TOP
    y = _Shares(low, high) if chart.shares else _Axis((point[1] for point in points), low, high)
    yield _text(WIDTH / 2, 18, chart.title, "middle", weight="bold")
    yield _text(WIDTH / 2, HEIGHT - 12, chart.across, "middle")
    yield f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(chart.up)}</text>'
    for tick in x.ticks:
        yield _line(x.at(tick), TOP, x.at(tick), HEIGHT - BOTTOM)
        yield _text(x.at(tick), HEIGHT - BOTTOM + 16, f"{tick:,g}", "middle")
    for tick in y.ticks:
        yield _line(LEFT, y.at(tick), WIDTH - RIGHT, y.at(tick))
        yield _text(LEFT - 6, y.at(tick) + 4, f"{tick:,g}", "end")
    for index, (name, line) in enumerate(chart.lines.items()):
        colour = COLOURS[index]
        path = " ".join(f"{x.at(across):.1f},{y.at(up):.1f}" for across, up in line)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for across, up in line if len(line) <= MARKED else ():
            yield f'<circle cx="{x.at(across):.1f}" cy="{y.at(up):.1f}" r="3" fill="{colour}"/>'
        row, column = divmod(index, 3)
        yield _text(LEFT + 10 + 150 * column, TOP - 24 + 15 * row, name, "start", colour=colour)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str, *, weight: str = "normal", colour: str = "#222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">'
        f"{escape(text)}</text>"
    )
