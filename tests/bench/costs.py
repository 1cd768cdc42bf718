"""What an ADD costs etcd, by etcd's own count: nothing before the reply, and little after it."""

import json
from pathlib import Path

from tests.bench.contenders import POOL
from tests.bench.figures import Cost
from tests.bench.programs import run_program
from tests.daemon_process import Daemon, network, wait_for
from tests.etcd_process import EtcdProcess

AT_REST = 30
"""ADDs of the count of calls on the way."""


def measure(directory: Path, programs: Path, burst: int) -> Cost:
    """Count the calls during a few ADDs, whose flush comes later, and then all that a burst causes."""
    config = directory / "costs.json"
    config.write_text(json.dumps(network()))

    def add(daemon: Daemon, connections: int, count: int) -> None:
        run_program(programs / "load", str(daemon.socket), str(connections), "ADD", "c", str(count), str(config))

    with EtcdProcess(directory / "costs-etcd") as etcd:
        # Changes are gathered for 2 s before they are sent: what happens meanwhile happens on the way to a reply.
        lingering = [
            *POOL,
            "--etcd-endpoints",
            etcd.endpoint,
            "--flush-linger",
            "2",
            "--reserve-min",
            str(AT_REST + 10),
        ]
        with Daemon(directory / "costs-at-rest", "bench-at-rest", *lingering) as daemon:
            _settled(daemon)
            before = _served(etcd)
            add(daemon, 1, AT_REST)
            on_the_way = sum(_served(etcd).values()) - sum(before.values())
            if not daemon.metric("ipamd_unflushed_facts"):
                raise RuntimeError("cannot count the calls on the way: the flush came before the last reply")
        with Daemon(directory / "costs-burst", "bench-burst", *POOL, "--etcd-endpoints", etcd.endpoint) as daemon:
            _settled(daemon)
            before, received = _served(etcd), _received(etcd)
            add(daemon, 32, burst)
            _settled(daemon)
            transactions = _served(etcd)["Txn"] - before["Txn"]
            return Cost(AT_REST, int(on_the_way), burst, int(transactions), int(_received(etcd) - received))


def _settled(daemon: Daemon) -> None:
    wait_for(lambda: not daemon.metric("ipamd_unflushed_facts"), 60.0, lambda: daemon.log.read_text()[-2000:])


def _served(etcd: EtcdProcess) -> dict[str, float]:
    """How many calls for records etcd began to serve, by method."""
    mark = 'grpc_method="'
    return {
        name.partition(mark)[2].partition('"')[0]: value
        for name, value in etcd.metrics().items()
        if name.startswith("grpc_server_started_total") and 'grpc_service="etcdserverpb.KV"' in name
    }


def _received(etcd: EtcdProcess) -> float:
    """Bytes of all requests."""
    return etcd.metrics()["etcd_network_client_grpc_received_bytes_total"]
