"""Why: for every refusal by the rules of addresses the same reason, and what is explained is what happens."""

import json
from collections.abc import Callable

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.address import parse_address, parse_cidr
from ipamd.core.errors import RefusedError
from ipamd.core.explain import Decision, Refusal, Seen, explain, unseen
from ipamd.core.facts import Place
from ipamd.core.request import AddRequest
from ipamd.core.whereabouts import Whereabouts, whereabouts
from ipamd.store.requested import see
from tests.core.snapshot import snapshot
from tests.memory_store import MemoryStore
from tests.nodes import EPOCH, Node, add_request, now, pool_record
from tests.store.truth import view

Setup = Callable[[MemoryStore], None]
POD = add_request("a", started=0)
OTHER = "k8s-pod-network.other"
ANNOTATION = "pod annotation cni.projectcalico.org/ipv4pools"


def naming(*names: str) -> AddRequest:
    """An ADD that names pools."""
    return replace(POD, named={4: names}, named_by={4: ANNOTATION})


def asking(address: str) -> AddRequest:
    """An ADD that asks for an address."""
    family, value = parse_address(address)
    return replace(POD, addresses={family: value})


def pool(name: str, cidr: str = "10.0.0.0/28", **spec: object) -> Setup:
    """An IPPool, in blocks of 16."""
    return lambda store: store.put(*pool_record(name, cidr, **{"blockSize": 28, **spec}))


def record(key: str, value: bytes) -> Setup:
    """Any record."""
    return lambda store: store.put(key, value)


def config(**fields: object) -> Setup:
    """An IPAMConfig."""
    return record(keys.CONFIG, json.dumps({"strict_affinity": False, "auto_allocate_blocks": True, **fields}).encode())


def reservation(cidr: str) -> Setup:
    """An IPReservation."""
    return record(keys.RESERVATIONS + "kept", json.dumps({"spec": {"reservedCIDRs": [cidr]}}).encode())


def others(cidr: str, held: int, cooling: int = 0, owner: str = "far") -> Setup:
    """A block of another node (or this one), the first so many of its addresses in use, the next cooling."""

    def put(store: MemoryStore) -> None:
        strangers = view(store)
        strangers.make(cidr, f"host:{owner}", 1)
        for ordinal in range(held + cooling):
            strangers.take(Place(cidr, ordinal), OTHER, {"node": "far", "namespace": "shop", "pod": f"web-{ordinal}"})
        for ordinal in range(held, held + cooling):
            strangers.cool(Place(cidr, ordinal), EPOCH)
        store.records, store.revision = strangers.records, strangers.revision

    return put


CASES: dict[str, tuple[AddRequest, int, list[Setup]]] = {
    "no pool": (POD, 100, []),
    "disabled": (POD, 100, [pool("p", disabled=True)]),
    "manual": (POD, 100, [pool("p", assignmentMode="Manual")]),
    "for tunnels": (POD, 100, [pool("p", allowedUses=["Tunnel"])]),
    "another rack": (POD, 100, [pool("p", nodeSelector='rack == "1"'), pool("q", "10.1.0.0/28", nodeSelector="has(x)")]),
    "namespace without Kubernetes": (POD, 100, [pool("p", namespaceSelector="has(team)")]),
    "another namespace": (
        replace(POD, namespace_labels={"team": "y"}), 100, [pool("p", namespaceSelector="team == 'x'")],
    ),
    "a selector that nobody can read": (POD, 100, [pool("p", nodeSelector="rack = 1")]),
    "a pool that nobody can read": (POD, 100, [record(keys.POOLS + "p", b'{"metadata":{"name":"p"},"spec":{"cidr":"x"}}')]),
    "a named pool that does not exist": (naming("q"), 100, [pool("p")]),
    "a named pool that is disabled": (naming("p", "q"), 100, [pool("p"), pool("q", "10.1.0.0/28", disabled=True)]),
    "a named pool that nobody can read": (naming("q"), 100, [pool("p"), record(keys.POOLS + "q", b"{}")]),
    "full": (POD, 101, [pool("p"), others("10.0.0.0/28", 16)]),
    "full, and one disabled": (POD, 101, [pool("p"), pool("q", "10.1.0.0/28", disabled=True), others("10.0.0.0/28", 16)]),
    "two that are full": (
        POD, 101, [pool("p"), pool("q", "10.1.0.0/28"), others("10.0.0.0/28", 16), others("10.1.0.0/28", 16)],
    ),
    "full, and strict": (POD, 101, [pool("p"), others("10.0.0.0/28", 1), config(strict_affinity=True)]),
    "reserved": (POD, 101, [pool("p"), reservation("10.0.0.0/24")]),
    "at the limit": (POD, 102, [pool("p", "10.0.0.0/27"), others("10.0.0.0/28", 16, owner="n1"), config(maxBlocksPerHost=1)]),
    "no blocks by itself": (POD, 102, [pool("p", "10.0.0.0/27"), config(auto_allocate_blocks=False)]),
    "locked": (POD, 11, [pool("p"), record(keys.CLUSTER_INFORMATION, b'{"spec":{"datastoreReady":false}}')]),
    "in no pool": (asking("10.9.9.9"), 105, [pool("p")]),
    "in a disabled pool": (asking("10.0.0.9"), 105, [pool("p", disabled=True)]),
    "another's": (asking("10.0.0.3"), 104, [pool("p"), others("10.0.0.0/28", 4)]),
    "cooling": (asking("10.0.0.4"), 104, [pool("p"), others("10.0.0.0/28", 4, 1), config(ipCooldownSeconds=600)]),
    "another's block, strict": (asking("10.0.0.9"), 105, [pool("p"), others("10.0.0.0/28", 4), config(strict_affinity=True)]),
    "a smaller block": (asking("10.0.0.9"), 105, [pool("p"), others("10.0.0.8/29", 0)]),
    "a smaller block beside it": (asking("10.0.0.9"), 105, [pool("p"), others("10.0.0.0/29", 0)]),
    "a larger block": (asking("10.0.0.9"), 105, [pool("p"), others("10.0.0.0/26", 0)]),
    "a block that nobody can read": (
        asking("10.0.0.9"), 105, [pool("p"), record(keys.block_key(parse_cidr("10.0.0.0/28")), b"{}")],
    ),
    "a block at another's key": (
        asking("10.0.0.9"), 105,
        [pool("p"), others("10.3.0.0/28", 0), lambda s: s.put(
            keys.block_key(parse_cidr("10.0.0.0/28")), s.records[keys.block_key(parse_cidr("10.3.0.0/28"))].value)],
    ),
}  # fmt: skip
"""What refuses an ADD: the request, the code, and what the store holds."""


async def look(store: MemoryStore, node: Node, family: int, value: int) -> dict[str, Seen]:
    """What the store says of an address, if the node has to ask."""
    block = unseen(node.ledger, family, value)
    return {} if block is None else {str(block): await see(store, block, value)}


async def decisions(node: Node, store: MemoryStore, request: AddRequest) -> list[Decision]:
    """What is explained of an ADD, after the looks at the store that it takes; fails if that changes anything."""
    seen: dict[str, Seen] = {}
    for each in request.addresses.items():
        seen |= await look(store, node, *each)
    before = state(node)
    found = explain(node.ledger, request, now(), "the node is still claiming addresses", seen)
    assert state(node) == before
    return found


async def where(node: Node, store: MemoryStore, address: str) -> Whereabouts:
    """Where an address is."""
    family, value = parse_address(address)
    seen = await look(store, node, family, value)
    before = state(node)
    found = whereabouts(node.ledger, family, value, now(), *seen.values())
    assert state(node) == before
    return found


def state(node: Node) -> object:
    """All that an ADD could change."""
    ledger = node.ledger
    reserves = {name: (r.named, r.waiting, r.level, r.closed, r.refusal) for name, r in ledger.reserves.items()}
    return (
        snapshot(ledger),
        reserves,
        {cidr: block.line() for cidr, block in ledger.blocks.items()},
        dict(ledger.wanted),
    )


def stored(setups: list[Setup]) -> MemoryStore:
    """A store that takes a millisecond a call."""
    store = MemoryStore(delay=0.001)
    for setup in setups:
        setup(store)
    return store


@pytest.mark.parametrize("case", CASES)
async def test_a_refusal_is_explained_in_its_own_words(autojump_clock: MockClock, case: str) -> None:
    """Code and text are those with which the ADD was refused, and each pool that the text names has its reason there."""
    request, code, setups = CASES[case]
    store = stored(setups)
    async with Node("n1", store).running() as node:
        with pytest.raises(RefusedError) as refused:
            await node.add(replace(request, started=now().boot))
        assert refused.value.code == code
        (decision,) = await decisions(node, store, request)
        assert (decision.outcome, decision.refusal) == ("refusal", Refusal(code, refused.value.msg))
        if code == 100 and decision.pools:
            assert any(step.why in refused.value.msg for step in decision.pools if not step.admitted)
        if code in (101, 102):
            assert all(step.no_address in refused.value.msg for step in decision.pools if step.admitted)
            assert any(step.no_address for step in decision.pools)


async def test_what_is_explained_is_what_happens(autojump_clock: MockClock) -> None:
    """The next pod gets the address that was told, of that pool and block, whatever it asks for."""
    store = stored([pool("p"), pool("q", "10.1.0.0/24"), pool("r", "10.2.0.0/28"), others("10.0.0.0/28", 16)])
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        for number, request in enumerate((POD, naming("q"), naming("r"), asking("10.1.0.200"), asking("10.2.0.9"))):
            who = add_request(f"c{number}")
            (told,) = await decisions(node, store, request)
            assigned = await node.add(replace(request, attachment=who.attachment, started=now().boot))
            if told.outcome == "address":
                assert [told.address] == node.addresses(assigned)
            assert (told.block or assigned.places[0].block) == assigned.places[0].block
            (now_told,) = await decisions(node, store, request)
            assert now_told.outcome == ("refusal" if request.addresses else "address")


async def test_each_pool_says_what_admits_or_excludes_it(autojump_clock: MockClock) -> None:
    """With the labels that were compared, and what this node has of it."""
    store = stored(
        [
            pool("a", nodeSelector='rack == "1" && !has(spare)'),
            pool("b", "10.1.0.0/24"),
            pool("c", "10.2.0.0/28", namespaceSelector="team == 'x'"),
            config(maxBlocksPerHost=1),
        ]
    )
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        (decision,) = await decisions(node, store, replace(POD, namespace_labels={"team": "y"}))
        a, b, c = decision.pools
        assert (a.admitted, a.why, a.remedy) == (
            False, 'excludes node n1 by its nodeSelector (rack == "1" && !has(spare))', "label the node",
        )  # fmt: skip
        assert a.node_labels == {"rack": None, "spare": None}
        assert b.admitted
        assert (
            b.why == "serves: it is enabled and Automatic, and its selectors select this node and the pod's namespace"
        )
        assert (b.blocks, b.reserve + b.unreserved, b.waiting) == (1, 16, 0)
        assert b.no_block == "this node has 1 blocks, the limit (maxBlocksPerHost)"
        assert c.namespace_labels == {"team": "y"}
        assert c.why == "excludes namespace default by its namespaceSelector (team == 'x')"
        (decision,) = await decisions(node, store, naming("c"))
        assert [(step.pool, step.admitted, step.why) for step in decision.pools] == [
            ("a", False, f"is not among the pools that {ANNOTATION} names"),
            ("b", False, f"is not among the pools that {ANNOTATION} names"),
            ("c", True, "serves: the request names it, so its selectors do not count"),
        ]
        assert (decision.outcome, decision.pool) == ("wait", "c")
        assert decision.why == "no address of pool c is in reserve; the node is still claiming addresses"


async def test_a_wait_says_what_for(autojump_clock: MockClock) -> None:
    """A pool without a block left, an address in another node's reserve, a block to claim, a store that is away."""
    store = stored([pool("p"), others("10.0.0.0/28", 3), config(maxBlocksPerHost=1)])
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        (told,) = await decisions(node, store, POD)
        assert told.outcome == "wait"
        assert told.why.startswith(
            "no address of pool p is in reserve, and no block of it can be claimed: none of its 1"
        )
        (told,) = await decisions(node, store, asking("10.0.0.9"))
        assert (told.outcome, told.why) == (
            "wait", "it is reserved in its block 10.0.0.0/28 first, which takes a transaction",
        )  # fmt: skip
        (told,) = explain(node.ledger, asking("10.0.0.9"), now(), "")
        assert (told.outcome, told.why) == ("wait", "the store has to say who has it: it was not asked")
    store = stored([pool("p", "10.0.0.0/24")])
    async with Node("n1", store).running() as node, Node("n2", store).running() as far:
        await trio.sleep(1)
        block = next(iter(far.ledger.blocks.values()))
        (told,) = await decisions(node, store, asking(block.address(block.line()[0])))
        assert (told.outcome, told.why) == (
            "wait",
            (
                "another node is asked to give it back: "
                "the reserve of node n2 has it; request another address, or release this one first"
            ),
        )
        unclaimed = next(f"10.0.0.{n}" for n in range(0, 256, 16) if f"10.0.0.{n}/28" not in view(store).blocks())
        (told,) = await decisions(node, store, asking(unclaimed))
        assert told.why == f"its block {unclaimed}/28 is claimed first, which takes a transaction"


async def test_before_the_store_has_answered(autojump_clock: MockClock) -> None:
    """No pool is known, and nobody says that there is none."""
    store = stored([])
    store.away = True
    async with Node("n1", store).running(look=False) as node:
        (told,) = explain(node.ledger, POD, now(), "the store cannot be read (memory: away)")
        assert (told.outcome, told.why) == ("wait", "no pool is known yet; the store cannot be read (memory: away)")


async def test_a_drained_node_says_so(autojump_clock: MockClock) -> None:
    """The refusal comes before any pool; the pools are told all the same."""
    store = stored([pool("p")])
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        node.ledger.draining = True
        (told,) = await decisions(node, store, POD)
        assert told.refusal is not None
        assert told.refusal.msg.startswith("cannot assign an address to default/pod-a: node n1 is being drained")
        assert [step.pool for step in told.pools] == ["p"]


# --- addresses ----------------------------------------------------------------------------------------------------


async def test_where_an_address_is(autojump_clock: MockClock) -> None:
    """Each state with its block's owner, its holder, and what keeps it from the next pod."""
    store = stored(
        [
            pool("p", "10.0.0.0/26"),
            pool("off", "10.1.0.0/28", disabled=True),
            others("10.0.0.16/28", 2, 1),
            config(ipCooldownSeconds=600),
            reservation("10.0.0.20/31"),
        ]
    )
    async with Node("n1", store).running() as node:
        (address,) = node.addresses(await node.add(add_request("a")))
        told = await where(node, store, address)
        assert (told.state, told.what) == ("pod", "default/pod-a on this node has it, and the store does not know yet")
        assert told.holder is not None
        assert not told.holder.flushed
        await node.flushed()
        told = await where(node, store, address)
        assert told.holder is not None
        assert (told.what, told.affinity, told.pool) == ("default/pod-a on this node has it", "host:n1", "p")
        assert (told.holder.container, told.holder.interface, told.holder.pod) == ("a", "eth0", "pod-a")
        assert told.holder.attributes["pod"] == "pod-a"
        assert told.hindrances == (told.what,)
        assert told.on_request.refusal is not None
        assert told.on_request.refusal.code == 104
        (block,) = (block for block in node.ledger.blocks.values() if block.owned)
        first, last = block.line()[0], block.line()[-1]
        told = await where(node, store, block.address(first))
        assert (told.state, told.hindrances, told.on_request.outcome) == ("reserve", (), "address")
        assert told.what == f"this node has it in reserve, number 1 of {len(block.line())} in its block's line"
        block.withdraw([last])
        told = await where(node, store, block.address(last))
        assert told.what == "this node is about to give it back from its reserve"
        node.delete("a")
        assert (await where(node, store, address)).state == "releasing"
        expected = {
            "10.0.0.16": ("pod", "shop/web-0 on node far has it", "far"),
            "10.0.0.18": ("cooling", "it was released at 2026-11-20T23:47:40Z and cools (ipCooldownSeconds)", ""),
            "10.0.0.19": ("free", "nobody has it", None),
            "10.1.0.3": ("unclaimed", "its block does not exist: no node has claimed it", None),
            "10.9.0.3": ("outside", "it is in no IP pool", None),
        }
        for text, (state_of, what, who) in expected.items():
            told = await where(node, store, text)
            assert (told.state, told.what, told.holder and told.holder.node) == (state_of, what, who), text
        assert (await where(node, store, "10.0.0.19")).hindrances == (
            "its block belongs to host far, and it is borrowed only when no block is left to claim",
        )
        told = await where(node, store, "10.0.0.21")
        assert told.reserved_by == ("kept",)
        assert told.hindrances[0] == "IPReservation kept keeps it back"
        assert (await where(node, store, "10.1.0.3")).hindrances == ("its pool off is disabled",)


async def test_where_an_address_is_that_only_the_store_knows(autojump_clock: MockClock) -> None:
    """Without an answer it is unknown, and says why; a block of another size is found where it is."""
    store = stored([pool("p", "10.0.0.0/26"), others("10.0.0.16/29", 1)])
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        told = await where(node, store, "10.0.0.16")
        assert (told.block, told.state, told.what) == ("10.0.0.16/29", "pod", "shop/web-0 on node far has it")
        assert told.on_request.refusal is not None
        assert told.on_request.refusal.code == 105
        told = whereabouts(node.ledger, *parse_address("10.0.0.16"), now(), Seen(error="memory: away"))
        assert (told.state, told.what) == ("unknown", "its block cannot be looked at: memory: away")
        assert told.on_request.why == "the store has to say who has it: memory: away"


async def test_the_reserves_of_others(autojump_clock: MockClock) -> None:
    """Another node's, and what a lost state file of this node had promised."""
    store = stored([pool("p", "10.0.0.0/24")])
    async with Node("n1", store, instance="lost").running():
        await trio.sleep(1)
    async with Node("n2", store).running() as far:
        await trio.sleep(1)
        block = next(iter(far.ledger.blocks.values()))
        async with Node("n1", store, instance="new").running() as node:
            await trio.sleep(1)
            told = await where(node, store, block.address(block.line()[0]))
            assert (told.state, told.what) == ("reserve", "node n2 has it in reserve")
            stranded = next(b.address(o) for b in node.ledger.blocks.values() for o in b.stranded)
            told = await where(node, store, stranded)
            assert told.state == "quarantined"
            assert told.what == "a lost state file of this node had it in reserve: kept from everybody for a while"


async def test_tunnels_and_windows(autojump_clock: MockClock) -> None:
    """What is no workload's is told as what it is."""
    store = stored([pool("p", "10.0.0.0/26"), others("10.0.0.16/28", 0)])
    strangers = view(store)
    strangers.take(Place("10.0.0.16/28", 0), "vxlan-tunnel-addr-far", {"node": "far", "type": "vxlanTunnelAddress"})
    strangers.take(Place("10.0.0.16/28", 1), "windows-reserved-ipam-handle", {"note": "windows"})
    store.records, store.revision = strangers.records, strangers.revision
    async with Node("n1", store).running() as node:
        assert (await where(node, store, "10.0.0.16")).state == "tunnel"
        assert (await where(node, store, "10.0.0.17")).state == "other"
