"""What the chart's Grafana dashboard shows: rows of panels, from above in the order in which one asks at night."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

NODES = 'instance=~"$instance"'
POOLS = f'{NODES},pool=~"$pool"'


class Panel(NamedTuple):
    """A panel: what it asks, and what to call each line of the answer; ``width`` of the page's 24."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    kind: Literal["timeseries", "stat", "bargauge"] = "timeseries"
    width: int = 12
    about: str = ""


def _rate(counter: str) -> str:
    return f"sum(rate({counter}{{{NODES}}}[5m]))"


def _by_stage(part: str) -> str:
    return f"sum by (stage) (rate(ipamd_request_stage_duration_seconds_{part}{{{NODES}}}[5m]))"


OVERVIEW = (
    Panel(
        "Nodes that can serve an ADD",
        "short",
        [(f"sum(ipamd_ready{{{NODES}}})", "ready"), (f"count(ipamd_ready{{{NODES}}})", "all")],
        "stat",
        6,
    ),
    Panel("Pools: how full", "percentunit", [('ipamd:pool_used:ratio{pool=~"$pool"}', "{{pool}}")], "bargauge", 9),
    Panel(
        "Pools: used up in",
        "s",
        [('ipamd_pool_exhaustion_seconds{pool=~"$pool"}', "{{pool}}")],
        "stat",
        9,
        "At the pace of the last six hours; empty where a pool does not grow.",
    ),
)

REQUESTS = (
    Panel("Requests", "reqps", [("ipamd:requests:rate5m", "{{verb}} code {{code}}")]),
    Panel("Time to a reply, 99th percentile", "s", [("ipamd:request_duration_seconds:p99_5m", "{{verb}}")]),
    Panel(
        "Where the time goes, mean of each stage",
        "s",
        [(f"{_by_stage('sum')} / {_by_stage('count')}", "{{stage}}")],
    ),
    Panel(
        "Reserve: smallest of the nodes",
        "short",
        [
            (f"min by (pool) (ipamd_reserve_addresses{{{POOLS}}})", "{{pool}}"),
            (f"min by (pool) (ipamd_reserve_target_addresses{{{POOLS}}})", "{{pool}} wanted"),
        ],
    ),
)

ADDRESSES = (
    Panel("Addresses by state", "short", [(f"sum by (state) (ipamd_addresses{{{POOLS}}})", "{{state}}")]),
    Panel(
        "Blocks, and host-local addresses",
        "short",
        [
            (f"sum by (pool) (ipamd_blocks{{{POOLS}}})", "blocks of {{pool}}"),
            (f"sum by (network) (ipamd_range_addresses{{{NODES}}})", "addresses of {{network}}"),
        ],
    ),
)

STORE = (
    Panel("What the store does not have yet, oldest", "s", [(f"max(ipamd_unflushed_age_seconds{{{NODES}}})", "age")]),
    Panel(
        "Store: transactions, conflicts, failures",
        "ops",
        [
            (_rate("ipamd_flush_transactions_total"), "transactions"),
            (_rate("ipamd_flush_conflicts_total"), "conflicts"),
            (_rate("ipamd_flush_failures_total"), "failures"),
            (_rate("ipamd_watch_events_total"), "watched changes"),
            (_rate("ipamd_store_reads_total"), "full reads"),
        ],
    ),
)

DAEMONS = (
    Panel(
        "Nodes without store, ADDs that wait, leaks in an hour",
        "short",
        [
            (f"count(ipamd_store_connected{{{NODES}}} == 0) or vector(0)", "without store"),
            (f"sum(ipamd_waiting_requests{{{POOLS}}})", "waiting"),
            (f"sum(increase(ipamd_leaked_addresses_total{{{NODES}}}[1h]))", "leaked"),
        ],
    ),
    Panel(
        "State file, largest; connections, most",
        "short",
        [
            (f"max(ipamd_journal_size_bytes{{{NODES}}})", "state file, bytes"),
            (f"max(ipamd_connections{{{NODES}}})", "connections"),
        ],
    ),
)

ROWS = {
    "All nodes": OVERVIEW,
    "Requests": REQUESTS,
    "Addresses": ADDRESSES,
    "Store": STORE,
    "Daemons": DAEMONS,
}
"""The panels by the title of their row."""
