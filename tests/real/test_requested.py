"""Requested and tunnel addresses at the plugin's edge: two daemons and Calico's node agent on one etcd."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import trio

from ipamd.core import keys
from ipamd.store.etcd import EtcdSettings, EtcdStore
from tests.calico.node import Calico
from tests.calico_state import State, agreed
from tests.daemon_process import Answer, Daemon, network, wait_for
from tests.etcd_process import EtcdProcess
from tests.nodes import pool_record
from tests.real.conftest import Start

pytestmark = pytest.mark.real

NODES = ("node-a", "node-b")


@pytest.fixture
def daemons(etcd: EtcdProcess, start: Start) -> list[Daemon]:
    """Two nodes; a pool of each IP version, one for tunnels alone, one that is disabled."""
    for name, cidr, spec in (
        ("four", "10.10.0.0/22", {"blockSize": 28}),
        ("six", "fd00:10::/112", {"blockSize": 124}),
        ("tunnels", "10.11.0.0/24", {"blockSize": 28, "allowedUses": ["Tunnel"]}),
        ("off", "10.12.0.0/24", {"blockSize": 28, "disabled": True}),
    ):
        etcd.put(*pool_record(name, cidr, **spec))
    return [start(node) for node in NODES]


def ask(daemon: Daemon, container: str, addresses: str, **ipam: object) -> Answer:
    """An ADD by the plugin that asks for addresses by IP in CNI_ARGS."""
    args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{container};IP={addresses}"
    return daemon.plugin("ADD", container, network(**ipam), args=args)


def refusal(answer: Answer) -> tuple[int, str]:
    """Code and text of a refusal."""
    assert answer.code == 1, answer.text
    return answer.json["code"], answer.json["msg"]


def free_address(daemon: Daemon) -> str:
    """An address of the daemon's own IPv4 block that is neither held nor in reserve."""
    block = next(view["cidr"] for view in daemon.get("/v1/blocks") if view["pool"] == "four")
    reserved = {address for view in daemon.get("/v1/reserve") for address in view["addresses"]}
    base = block.partition("/")[0].rpartition(".")
    return next(a for o in range(16) if (a := f"{base[0]}.{int(base[2]) + o}") not in reserved)


def test_requested_addresses_on_two_nodes(etcd: EtcdProcess, daemons: list[Daemon]) -> None:
    """In reserve, here and there, in our block, in none, in another node's; then taken, released, and given again."""
    one, two = daemons
    reserved, theirs = (
        next(view for view in each.get("/v1/reserve") if view["pool"] == "four")["addresses"][5] for each in daemons
    )
    wanted = [reserved, theirs, free_address(one), "10.10.3.77", free_address(two), "fd00:10::abcd"]
    for number, address in enumerate(wanted):
        mask = 128 if ":" in address else 32
        assert ask(one, f"c{number}", address).json == {
            "cniVersion": "1.0.0",
            "ips": [{"address": f"{address}/{mask}"}],
            "routes": [{"dst": f"{address}/{mask}"}],
        }
    state = agreed(etcd, *daemons)
    assert state.pods("node-a") == {address: f"k8s-pod-network.c{n}" for n, address in enumerate(wanted)}
    for address in wanted:
        assert refusal(ask(two, "x", address)) == (
            104,
            (
                f"cannot assign {address} to default/pod-x: default/pod-c{wanted.index(address)} on node node-a has it; "
                "request another address, or release this one first"
            ),
        )
    for number in range(len(wanted)):
        one.delete(f"c{number}")
    assert not agreed(etcd, *daemons).pods()
    assert ask(two, "y", wanted[3]).addresses == [wanted[3]]


def test_what_is_refused(etcd: EtcdProcess, daemons: list[Daemon]) -> None:
    """Every refusal of a requested address, in full, as a pod's events show it."""
    one, two = daemons
    ask(one, "held", "10.10.3.1")
    etcd.put(keys.CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":true}')
    theirs = free_address(two)
    block = next(view["cidr"] for view in two.get("/v1/blocks") if view["pool"] == "four")
    told = {
        "10.10.3.1": (
            104,
            "default/pod-held on this node has it; request another address, or release this one first",
        ),
        "10.99.0.1": (105, "it is in no IP pool; request an address of an enabled pool"),
        "10.12.0.1": (105, "its pool off (10.12.0.0/24) is disabled; request an address of another pool"),
        "10.11.0.1": (
            105,
            (
                "its pool tunnels (10.11.0.0/24) is not allowed for use Workload (allowedUses: Tunnel); request an address of "
                "another pool"
            ),
        ),
        theirs: (
            105,
            (
                f"its block {block} belongs to host node-b, and strict affinity forbids to borrow; request an address of this "
                "node's blocks, or of a block that does not exist yet"
            ),
        ),
    }
    for address, (code, why) in told.items():
        assert refusal(ask(one, "x", address)) == (code, f"cannot assign {address} to default/pod-x: {why}")
    assert refusal(ask(one, "x", "10.10.3.2,10.10.3.3")) == (
        7,
        (
            "cannot assign the requested addresses: 10.10.3.2 (IP in CNI_ARGS) and 10.10.3.3 (IP in CNI_ARGS) are both IPv4, "
            "and an interface gets one address of an IP version; ask for one"
        ),
    )
    assert refusal(ask(one, "x", "nonsense")) == (
        4,
        "cannot assign the requested address: IP in CNI_ARGS: 'nonsense' is not an address; correct it",
    )
    assert set(agreed(etcd, *daemons).pods()) == {"10.10.3.1"}


def test_two_nodes_race_for_the_same_addresses(etcd: EtcdProcess, daemons: list[Daemon]) -> None:
    """Plugins of both nodes at once, twenty addresses: each goes to exactly one pod, the other is told whose it is."""
    addresses = [f"10.10.2.{number * 7 % 256}" for number in range(20)]
    asked = [(daemon, f"{daemon.node}-{n}", address) for n, address in enumerate(addresses) for daemon in daemons]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda each: ask(*each), asked))
    for number, address in enumerate(addresses):
        pair = dict(zip(NODES, answers[2 * number : 2 * number + 2], strict=True))
        (winner,) = (node for node, answer in pair.items() if answer.code == 0)
        (loser,) = (node for node in NODES if node != winner)
        assert pair[winner].addresses == [address]
        code, msg = refusal(pair[loser])
        assert (code, msg.startswith(f"cannot assign {address} to default/pod-{loser}-{number}: ")) == (104, True)
    state = agreed(etcd, *daemons)
    assert set(state.pods()) == set(addresses)


def test_calicos_main_plugin_asks_twice(etcd: EtcdProcess, daemons: list[Daemon]) -> None:
    """One ADD for each IP version of the ipAddrs annotation; one DEL frees both."""
    assert ask(daemons[0], "dual", "10.10.3.9").addresses == ["10.10.3.9"]
    assert ask(daemons[0], "dual", "fd00:10::99").addresses == ["fd00:10::99"]
    assert set(agreed(etcd, *daemons).pods()) == {"10.10.3.9", "fd00:10::99"}
    daemons[0].delete("dual")
    assert not agreed(etcd, *daemons).pods()


def test_a_requested_address_survives_a_kill(etcd: EtcdProcess, daemons: list[Daemon]) -> None:
    """Kill -9 right after the answer: the pod still has it, also one that an IPReservation keeps from others."""
    etcd.put(keys.RESERVATIONS + "r", b'{"spec":{"reservedCIDRs":["10.10.3.0/24"]}}')
    assert ask(daemons[0], "c", "10.10.3.9").addresses == ["10.10.3.9"]
    daemons[0].kill()
    daemons[0].start()
    assert ask(daemons[0], "c", "10.10.3.9").addresses == ["10.10.3.9"]
    assert agreed(etcd, *daemons).pods() == {"10.10.3.9": "k8s-pod-network.c"}


# --- tunnel addresses -----------------------------------------------------------------------------------------


def tunnel(daemon: Daemon, method: str, kind: str = "vxlanTunnelAddress", **more: object) -> tuple[int, object]:
    """A request for, or the release of, a tunnel address: status and answer."""
    body = json.dumps({"type": kind, **more}).encode()
    status, answer = daemon.request(method, "/v1/tunnel-addresses", body)
    return status, json.loads(answer) if answer else None


def test_a_tunnel_address_over_the_api(etcd: EtcdProcess, daemons: list[Daemon]) -> None:
    """Given, the same again after a kill, in Calico's record, listed, released; the block of its pool goes with it."""
    one = daemons[0]
    status, given = tunnel(one, "POST", pools=["tunnels"])
    assert isinstance(given, dict)
    assert (status, given["handle"]) == (200, "vxlan-tunnel-addr-node-a")
    one.kill()
    one.start()
    status, again = tunnel(one, "POST")
    assert isinstance(again, dict)
    assert (status, again["address"]) == (200, given["address"])
    agreed(etcd, *daemons)
    assert one.get("/v1/tunnel-addresses") == [{**given, "flushed": True}]
    assert one.get("/v1/allocations") == []
    state = agreed(etcd, *daemons)
    (block,) = (block for cidr, block in state.blocks.items() if cidr.startswith("10.11."))
    held = {"handle_id": "vxlan-tunnel-addr-node-a", "secondary": {"node": "node-a", "type": "vxlanTunnelAddress"}}
    assert held in block["attributes"]
    assert tunnel(one, "DELETE") == (204, None)
    wait_for(lambda: "vxlan-tunnel-addr-node-a" not in State.of(etcd).handles)
    assert tunnel(daemons[1], "POST", kind="nonsense") == (
        400,
        {
            "code": 7,
            "msg": "cannot use type 'nonsense': the types are ipipTunnelAddress, vxlanTunnelAddress, "
            "vxlanV6TunnelAddress, wireguardTunnelAddress, wireguardV6TunnelAddress; name one of them",
        },
    )


def test_calicos_node_agent_takes_tunnel_addresses_beside_a_running_daemon(
    etcd: EtcdProcess, daemons: list[Daemon]
) -> None:
    """Calico's algorithm takes and releases the node's tunnel addresses while pods come and go: no address twice."""
    one = daemons[0]
    held: dict[str, str] = {}

    def pods(number: int) -> None:
        container = f"t{number}"
        (address,) = one.add(container)
        assert held.setdefault(address, container) == container
        if number % 3:
            del held[address]
            one.delete(container)

    async def agent() -> int:
        store, taken = EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,))), 0
        calico = Calico(store, "node-a", lambda: 1_795_218_460_000_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lambda: list(map(pods, range(90))))
            while len(nursery.child_tasks):
                for kind in ("vxlan-tunnel-addr", "ipip-tunnel-addr"):
                    address = await calico.tunnel_address(kind)
                    assert held.get(address) is None, f"{address} is {held[address]}'s and the tunnel's"
                    taken += 1
                await calico.release_by_handle("vxlan-tunnel-addr-node-a")
        await store.aclose()
        return taken

    assert trio.run(agent) > 4
    state = agreed(etcd, *daemons)
    assert set(state.pods("node-a")) == set(held)
    (ipip,) = one.get("/v1/tunnel-addresses")
    assert tunnel(one, "POST", kind="ipipTunnelAddress") == (200, ipip)
    assert [a for a, handle, _node in state.allocations() if handle == "ipip-tunnel-addr-node-a"] == [ipip["address"]]
