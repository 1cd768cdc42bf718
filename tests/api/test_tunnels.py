"""Tunnel addresses for other programs: what the API gives, releases, lists and refuses."""

import json
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from ipamd.api.http import Request, Response
from ipamd.core.facts import Assigned, Attachment, Place, Released
from tests.api.plugin_call import RESERVE, ROOT, Path, addresses_of, call, under_way
from tests.core.snapshot import differences, replay, snapshot
from tests.nodes import pool_record

VXLAN = {"type": "vxlanTunnelAddress"}


@pytest.fixture
def path() -> Path:
    """A node with four addresses of each IP version in reserve."""
    made = Path()
    made.supply("10.0.0.0/29", 4)
    made.supply("fd00::/125", 4)
    return made


def request(method: str, body: object) -> Request:
    """A request with a JSON body."""
    return Request(method, "/v1/tunnel-addresses", "", {}, json.dumps(body).encode(), keep_alive=False)


async def give(path: Path, body: object = VXLAN) -> tuple[int, dict[str, object]]:
    """Ask for a tunnel address: status and answer."""
    response = await path.tunnels.give(request("POST", body), ROOT)
    return response.status, json.loads(response.body)


def listed(path: Path) -> list[dict[str, object]]:
    """The tunnel addresses that GET shows."""
    value = json.loads(path.tunnels.listed(request("GET", None), ROOT).body)
    assert isinstance(value, list)
    return value


def release(path: Path, body: object = VXLAN) -> Response:
    """Release a tunnel address."""
    return path.tunnels.release(request("DELETE", body), ROOT)


@pytest.mark.parametrize(
    ("kind", "address", "handle"),
    [
        ("ipipTunnelAddress", "10.0.0.0", "ipip-tunnel-addr-n1"),
        ("vxlanTunnelAddress", "10.0.0.0", "vxlan-tunnel-addr-n1"),
        ("vxlanV6TunnelAddress", "fd00::", "vxlan-v6-tunnel-addr-n1"),
        ("wireguardTunnelAddress", "10.0.0.0", "wireguard-tunnel-addr-n1"),
        ("wireguardV6TunnelAddress", "fd00::", "wireguard-v6-tunnel-addr-n1"),
    ],
)
async def test_an_address_of_each_type(path: Path, kind: str, address: str, handle: str) -> None:
    """Under Calico's handle, from the reserve, after a look whether the node has one; written down before the answer."""
    assert await give(path, {"type": kind}) == (
        200,
        {"type": kind, "address": address, "handle": handle, "flushed": False},
    )
    assert path.log == [f"find {handle}", "append Assigned", "wake"]
    (assigned,) = path.journal
    assert isinstance(assigned, Assigned)
    assert (assigned.handle, assigned.labels) == (handle, {"type": kind})


async def test_the_same_again_is_the_same(path: Path) -> None:
    """A node has one tunnel address of a type; nothing is asked or written the second time, nor after a restart."""
    first = await give(path)
    path.log.clear()
    assert await give(path) == first
    assert path.log == []
    restarted = replay("n1", path.ledger.policy, [*path.ledger.checkpoint()])
    assert not differences(snapshot(restarted), snapshot(path.ledger))


async def test_what_the_node_agent_took_is_the_nodes(path: Path) -> None:
    """Calico's node agent has one: it is the answer, it is listed before anybody asks, and it is no pod's."""
    path.supply("10.0.0.8/29", {2: "vxlan-tunnel-addr-n1", 3: RESERVE})
    taken = {"type": "vxlanTunnelAddress", "address": "10.0.0.10", "handle": "vxlan-tunnel-addr-n1", "flushed": True}
    assert listed(path) == [taken]
    assert await give(path) == (200, taken)
    assert listed(path) == [taken]
    assert (
        Place("10.0.0.8/29", 2)
        in path.ledger.holdings[Attachment("", "vxlan-tunnel-addr-n1", "vxlanTunnelAddress")].places
    )


async def test_released_it_is_gone(path: Path) -> None:
    """A release is a fact like a DEL's; again, or of what never was, it succeeds too."""
    await give(path)
    assert release(path).status == 204
    (released,) = [fact for fact in path.journal if isinstance(fact, Released)]
    assert (released.handle, released.places) == ("vxlan-tunnel-addr-n1", (Place("10.0.0.0/29", 0),))
    assert listed(path) == []
    assert release(path).status == 204
    assert set(path.ledger.strays) == {"vxlan-tunnel-addr-n1"}


def test_what_the_node_agent_took_can_be_released(path: Path) -> None:
    """The handle names it, whoever took it."""
    path.supply("10.0.0.8/29", {2: "vxlan-tunnel-addr-n1", 3: RESERVE})
    release(path)
    assert listed(path) == []
    assert path.ledger.blocks["10.0.0.8/29"].releasing == {2: "vxlan-tunnel-addr-n1"}


async def test_a_full_disk(path: Path) -> None:
    """What cannot be written down is not given: code 5; a release is owed."""
    await give(path, {"type": "ipipTunnelAddress"})
    path.full = True
    status, answer = await give(path)
    assert (status, answer["code"]) == (500, 5)
    assert [each["type"] for each in listed(path)] == ["ipipTunnelAddress"]
    assert release(path, {"type": "ipipTunnelAddress"}).status == 204
    assert [type(fact) for fact in path.owed] == [Released]


async def test_only_from_pools_for_tunnels(path: Path) -> None:
    """A pool without the use, or that does not select this node, gives none: code 100, with the reason for each pool."""
    path.commit(*pool_record("four", "10.0.0.0/16", blockSize=29, allowedUses=["Workload"]))
    path.commit(*pool_record("other", "10.1.0.0/16", allowedUses=["Tunnel"], nodeSelector="rack == '1'"))
    assert await give(path) == (
        409,
        {
            "code": 100,
            "msg": (
                "cannot assign an IPv4 address to this node's vxlanTunnelAddress: pool four is not allowed for use "
                "Tunnel (allowedUses: Workload); pool other excludes node n1 by its nodeSelector (rack == '1'); "
                "create a pool or label the node"
            ),
        },
    )


async def test_a_pool_for_tunnels_alone(autojump_clock: MockClock, path: Path) -> None:
    """It is supplied while somebody waits for a tunnel address, though no pod may have one of it."""
    path.commit(*pool_record("four", "10.0.0.0/16", blockSize=29, allowedUses=["Workload"]))
    path.commit(*pool_record("tunnels", "10.2.0.0/24", blockSize=29, allowedUses=["Tunnel"]))
    async with under_way(partial(give, path)) as answers:
        assert [pool.name for pool in path.ledger.pools_in_use()] == ["four", "six", "tunnels"]
        path.supply("10.2.0.0/29", 2)
    assert answers[0][1]["address"] == "10.2.0.0"
    assert [pool.name for pool in path.ledger.pools_in_use()] == ["four", "six"]
    assert addresses_of(path.ask(call())) == ["10.0.0.0/29"]


async def test_a_named_pool(path: Path) -> None:
    """By name or CIDR; its selectors do not matter then."""
    path.commit(*pool_record("far", "10.3.0.0/24", blockSize=29, nodeSelector="!all()", assignmentMode="Manual"))
    path.supply("10.3.0.0/29", 1)
    assert (await give(path, {**VXLAN, "pools": ["10.3.0.0/24"]}))[1]["address"] == "10.3.0.0"
    status, answer = await give(path, {"type": "ipipTunnelAddress", "pools": ["nope"]})
    assert (status, answer["msg"]) == (
        409,
        (
            "cannot assign an IPv4 address to this node's ipipTunnelAddress: pool nope, which the request names, does not "
            "exist; name an enabled pool of this IP version, by name or CIDR"
        ),
    )


async def test_the_store_is_away(path: Path) -> None:
    """Whether the node has one is not known: code 11; what was given here before is still answered."""
    await give(path)
    path.obstacle = "etcd does not answer"
    assert (await give(path))[0] == 200
    assert await give(path, {"type": "ipipTunnelAddress"}) == (
        503,
        {
            "code": 11,
            "msg": (
                "cannot assign an address to this node's ipipTunnelAddress: the store could not be asked whether it has "
                "one already (etcd does not answer); try again later"
            ),
        },
    )


@pytest.mark.parametrize(
    ("body", "code", "msg"),
    [
        (
            {"type": "vxlan"},
            7,
            (
                "cannot use type 'vxlan': the types are ipipTunnelAddress, vxlanTunnelAddress, vxlanV6TunnelAddress, "
                "wireguardTunnelAddress, wireguardV6TunnelAddress; name one of them"
            ),
        ),
        (
            {},
            6,
            (
                "cannot read the request: Object missing required field `type`; send a body such as "
                '{"type": "vxlanTunnelAddress"}'
            ),
        ),
    ],
)
async def test_what_is_no_request(path: Path, body: object, code: int, msg: str) -> None:
    """A type that Calico does not have, or no type: 400, to give and to release."""
    assert await give(path, body) == (400, {"code": code, "msg": msg})
    response = release(path, body)
    assert (response.status, json.loads(response.body)) == (400, {"code": code, "msg": msg})
    assert not path.journal


async def test_durability(autojump_clock: MockClock) -> None:
    """With a durability that waits, the answer waits for it."""
    path = Path(durable=True)
    path.supply("10.0.0.0/29", 4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(give, path)
        await trio.testing.wait_all_tasks_blocked()
        assert path.log[-1] == "durable begins Assigned"
        path.written.set()
    assert path.log[-1] == "durable ends"


async def test_a_release_overtakes_the_answer(autojump_clock: MockClock) -> None:
    """Whoever asked is told that the address is gone: nobody hears of one that was released meanwhile."""
    path = Path(durable=True)
    path.supply("10.0.0.0/29", 4)
    async with under_way(partial(give, path)) as answers:
        assert release(path).status == 204
        path.written.set()
    problem = "it was released while it was being assigned; ask again if it is still wanted"
    msg = f"cannot assign an address to this node's vxlanTunnelAddress: {problem}"
    assert answers == [(409, {"code": 103, "msg": msg})]


async def test_a_pods_garbage_collection_leaves_it(path: Path) -> None:
    """It belongs to no network, so that no runtime's list of attachments ends it."""
    await give(path)
    gc = {"cniVersion": "1.1.0", "name": "k8s-pod-network", "cni.dev/valid-attachments": []}
    path.ask(call(gc, CNI_COMMAND="GC"))
    assert len(listed(path)) == 1


@pytest.mark.parametrize("body", [b'{"type":"\xff"}', b'{"x":' + b"[" * 5000, b"", b"[]"])
def test_a_body_that_is_none_is_refused(path: Path, body: bytes) -> None:
    """Code 6, in words; no exception leaves the handler."""
    hostile = Request("DELETE", "/v1/tunnel-addresses", "", {}, body, keep_alive=False)
    answer = json.loads(path.tunnels.release(hostile, ROOT).body)
    assert answer["code"] == 6
    assert answer["msg"].startswith("cannot read the request: ")
