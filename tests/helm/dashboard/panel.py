"""A panel of the dashboard, and the words that its queries are made of.

No panel may draw a line for each node: there may be thousands. What happened over time is asked of all chosen nodes
together; which nodes they are is asked for now only, the first few by some measure.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

ALL = "Of all nodes, whichever are chosen above."
NODE = "{{node}} {{instance}}"
"""A node's name, where the chart's PodMonitor gives it, and what Prometheus calls its daemon."""


class Panel(NamedTuple):
    """A panel: what it asks, and what to call each line of the answer.

    ``stat``, ``trouble`` and ``bargauge`` show numbers of now, in ``trouble`` red unless 0, in a ``bargauge`` one below the
    other; ``timeseries`` shows lines. ``width`` is of the page's 24, ``nothing`` what to say if there is none.
    """

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    kind: Literal["timeseries", "stat", "trouble", "bargauge"] = "timeseries"
    width: int = 12
    about: str = ""
    nothing: str = ""


def nodes(metric: str, *more: str) -> str:
    """A metric of the chosen nodes."""
    return metric + "{" + ",".join(('instance=~"$instance"', *more)) + "}"


def pools(metric: str, *more: str) -> str:
    """A metric of the chosen pools on the chosen nodes."""
    return nodes(metric, 'pool=~"$pool"', *more)


def rate(counter: str) -> str:
    """How much a counter grows in a second, on all chosen nodes together."""
    return f"sum(rate({nodes(counter)}[5m]))"


def hourly(counter: str) -> str:
    """How much it grew in an hour."""
    return f"sum(increase({nodes(counter)}[1h]))"


def number(what: str) -> str:
    """How many series an expression finds, 0 if none."""
    return f"count({what}) or vector(0)"
