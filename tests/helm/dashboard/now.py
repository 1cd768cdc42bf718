"""What the dashboard shows first: whether something is wrong now, and on which nodes."""

from tests.helm.dashboard.panel import ALL, NODE, Panel, nodes, number, pools

_UNREADY = f"{nodes('ipamd_ready')} == 0 unless on (instance) ipamd_draining == 1"
_EMPTY = f"{pools('ipamd_reserve_addresses')} == 0 and {pools('ipamd_reserve_target_addresses')} > 0"
_RESERVES = f"{pools('ipamd_reserve_addresses')} and {pools('ipamd_reserve_target_addresses')} > 0"
_KNOWN = f"group by (instance) (last_over_time({nodes('ipamd_ready')}[1h]))"
_SCRAPED = f"group by (instance) ({nodes('ipamd_ready')})"
_DEAF = f"{nodes('ipamd_kubernetes_connected')} == 0 and {nodes('ipamd_kubernetes_lists_total')} > 0"
_FIRING = 'ALERTS{alertname=~"Ipamd.+",alertstate="firing"}'
_REFUSED = nodes("ipamd_requests_total", 'verb="ADD"', 'code!="0"')
_SECONDS, _ADDS = (
    f"sum by (node, instance) (rate({metric}[5m]))"
    for metric in (
        nodes("ipamd_request_duration_seconds_sum", 'verb="ADD"'),
        nodes("ipamd_request_duration_seconds_count", 'verb="ADD"'),
    )
)
_LOST = pools("ipamd_addresses", 'state=~"contested|quarantined"')

OVERVIEW = (
    Panel(
        "Nodes that can serve an ADD",
        "short",
        [
            (f"sum({nodes('ipamd_ready')})", "ready"),
            (f"sum({nodes('ipamd_draining')})", "drained"),
            (f"count({nodes('ipamd_ready')})", "all"),
        ],
        "stat",
        6,
        "A node that is drained or serves only host-local ranges is not ready: the word is of pools.",
    ),
    Panel(
        "Pools: how full",
        "percentunit",
        [('topk(15, ipamd:pool_used:ratio{pool=~"$pool"})', "{{pool}}")],
        "bargauge",
        9,
        f"The fullest 15. {ALL}",
    ),
    Panel(
        "Pools: used up in",
        "s",
        [('bottomk(10, ipamd_pool_exhaustion_seconds{pool=~"$pool"})', "{{pool}}")],
        "stat",
        9,
        f"At the pace of the last six hours; empty where a pool does not grow. The next 10. {ALL}",
        "no pool grows",
    ),
    Panel(
        "Nodes in trouble",
        "short",
        [
            (number(_UNREADY), "cannot serve"),
            (number(f"{_KNOWN} unless {_SCRAPED}"), "silent"),
            (number(f"{nodes('ipamd_store_connected')} == 0"), "without store"),
            (number(f"group by (instance) ({_EMPTY})"), "a reserve empty"),
            (number(f"group by (instance) ({pools('ipamd_waiting_requests')} > 0)"), "pods wait"),
            (number(_DEAF), "without Kubernetes"),
        ],
        "trouble",
        15,
        "Silent: scraped within the last hour, and not now.",
    ),
    Panel(
        "Alerts that fire",
        "short",
        [(f"count by (alertname) ({_FIRING})", "{{alertname}}")],
        "trouble",
        9,
        f"For how many nodes or pools. What to do about each: docs/operations.md, Alerts. {ALL}",
        "none",
    ),
)

WHERE = (
    Panel(
        "Cannot serve: how long the daemon runs",
        "s",
        [(f"bottomk(10, time() - {nodes('ipamd_start_time_seconds')} and on (instance) ({_UNREADY}))", NODE)],
        "bargauge",
        6,
        "Those that started last. Only seconds, again and again: it does not stay up. `ipamctl status` there says why.",
        "none",
    ),
    Panel(
        "ADDs refused, by node and code",
        "reqps",
        [(f"topk(10, sum by (node, instance, code) (rate({_REFUSED}[5m])) > 0)", f"{NODE} code {{{{code}}}}")],
        "bargauge",
        6,
        "What each code asks for: docs/errors.md.",
        "none",
    ),
    Panel(
        "ADDs that wait for an address",
        "short",
        [(f"topk(10, {pools('ipamd_waiting_requests')} > 0)", f"{NODE} {{{{pool}}}}")],
        "bargauge",
        6,
        "Counted in each pool that would do.",
        "none",
    ),
    Panel(
        "Least in reserve",
        "short",
        [(f"bottomk(10, {_RESERVES})", f"{NODE} {{{{pool}}}}")],
        "bargauge",
        6,
        "So many pods can start there while the store is away.",
    ),
    Panel(
        "Furthest behind with the store",
        "s",
        [(f"topk(10, {nodes('ipamd_unflushed_age_seconds')})", NODE)],
        "bargauge",
        6,
        "The age of the oldest change that the store does not have.",
    ),
    Panel(
        "Slowest ADDs, mean",
        "s",
        [(f"topk(10, {_SECONDS} / ({_ADDS} > 0))", NODE)],
        "bargauge",
        6,
        "Of the last five minutes.",
    ),
    Panel(
        "Held twice, or quarantined",
        "short",
        [(f"topk(10, {_LOST} > 0)", f"{NODE} {{{{pool}}}} {{{{state}}}}")],
        "bargauge",
        6,
        "Contested: two pods have it, delete one. Quarantined: a state file was lost; free by itself after a while.",
        "none",
    ),
    Panel(
        "Most blocks",
        "short",
        [(f"topk(10, sum by (node, instance) ({pools('ipamd_blocks')}))", NODE)],
        "bargauge",
        6,
        "A node with many more than others: is it the one with the pods?",
    ),
)
