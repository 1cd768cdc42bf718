"""What the dashboard shows of the last hours: requests, addresses, store and daemons of all chosen nodes together."""

from tests.helm.dashboard.panel import ALL, Panel, hourly, nodes, number, pools, rate


def _by_stage(part: str) -> str:
    return f"sum by (stage) (rate({nodes(f'ipamd_request_stage_duration_seconds_{part}')}[5m]))"


REQUESTS = (
    Panel("Requests", "reqps", [("ipamd:requests:rate5m", "{{verb}} code {{code}}")], about=ALL),
    Panel("Time to a reply, 99th percentile", "s", [("ipamd:request_duration_seconds:p99_5m", "{{verb}}")], about=ALL),
    Panel(
        "Where the time goes, mean of each stage",
        "s",
        [(f"{_by_stage('sum')} / {_by_stage('count')}", "{{stage}}")],
        about="queue: a busy host. decide: the daemon. journal: the disk. wait: for an address, or for Kubernetes.",
    ),
    Panel(
        "Reserve: smallest of the nodes",
        "short",
        [
            (f"min by (pool) ({pools('ipamd_reserve_addresses')})", "{{pool}}"),
            (f"min by (pool) ({pools('ipamd_reserve_target_addresses')})", "{{pool}} wanted"),
        ],
    ),
)

ADDRESSES = (
    Panel("Addresses by state", "short", [(f"sum by (state) ({pools('ipamd_addresses')})", "{{state}}")]),
    Panel(
        "Blocks, and host-local addresses",
        "short",
        [
            (f"sum by (pool) ({pools('ipamd_blocks')})", "blocks of {{pool}}"),
            (f"sum by (network) ({nodes('ipamd_range_addresses')})", "addresses of {{network}}"),
        ],
    ),
)

STORE = (
    Panel("What the store does not have yet, oldest", "s", [(f"max({nodes('ipamd_unflushed_age_seconds')})", "age")]),
    Panel(
        "Store: transactions, conflicts, failures",
        "ops",
        [
            (rate("ipamd_flush_transactions_total"), "transactions"),
            (rate("ipamd_flush_conflicts_total"), "conflicts"),
            (rate("ipamd_flush_failures_total"), "failures"),
            (rate("ipamd_watch_events_total"), "watched changes"),
            (rate("ipamd_store_reads_total"), "full reads"),
        ],
    ),
    Panel(
        "Changes that the store does not have yet",
        "short",
        [
            (f"sum({nodes('ipamd_unflushed_facts')})", "all nodes"),
            (f"max({nodes('ipamd_unflushed_facts')})", "most of one node"),
            (f"sum({nodes('ipamd_store_locked')})", "nodes that find the datastore locked"),
        ],
        width=8,
    ),
    Panel(
        "Operations in transactions, and blocks claimed",
        "ops",
        [
            (rate("ipamd_flush_operations_total"), "operations"),
            (rate("ipamd_claims_total"), "blocks claimed"),
        ],
        width=8,
    ),
    Panel(
        "Clearing away what nobody owns",
        "short",
        [
            ("sum(ipamd_cleaner)", "daemons that do"),
            (hourly("ipamd_leaked_handles_total"), "handles in an hour"),
            (hourly("ipamd_cleaned_addresses_total"), "addresses in an hour"),
        ],
        width=8,
        about="One daemon of the cluster does it.",
    ),
)

DAEMONS = (
    Panel(
        "Nodes without store, ADDs that wait, leaks in an hour",
        "short",
        [
            (number(f"{nodes('ipamd_store_connected')} == 0"), "without store"),
            (f"sum({pools('ipamd_waiting_requests')})", "waiting"),
            (hourly("ipamd_leaked_addresses_total"), "leaked"),
        ],
    ),
    Panel(
        "Kubernetes API: lists, and pods asked for by name",
        "reqps",
        [
            (rate("ipamd_kubernetes_lists_total"), "lists"),
            (rate("ipamd_kubernetes_fetches_total"), "pods asked for"),
        ],
        about="Nothing where `kubernetes.config` is not set.",
    ),
    Panel("State file, largest", "bytes", [(f"max({nodes('ipamd_journal_size_bytes')})", "state file")], width=6),
    Panel(
        "Connections, most",
        "short",
        [
            (f"max({nodes('ipamd_connections')})", "of one node"),
            (hourly("ipamd_connections_refused_total"), "refused in an hour, all nodes"),
        ],
        width=6,
    ),
    Panel(
        "Cannot be used",
        "short",
        [
            (f"sum({nodes('ipamd_damaged_records')})", "records"),
            (f"sum({nodes('ipamd_state_files_set_aside')})", "state files"),
        ],
        "trouble",
        6,
        "A record counts on each node that reads it, a state file that was set aside until it is removed.",
    ),
    Panel(
        "Daemons",
        "short",
        [
            (f"count by (version) ({nodes('ipamd_build_info')})", "{{version}}"),
            (number(f"time() - {nodes('ipamd_start_time_seconds')} < 3600"), "started in the last hour"),
            (number(f"{nodes('ipamd_runtime_attachments')} >= 0"), "can find leaks"),
        ],
        "stat",
        6,
        "Leaks are found where the container runtime's cache can be read.",
    ),
)
