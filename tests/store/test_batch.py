"""From what a node wants to one transaction: what is in it, in which order, and how much of it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipamd.core import keys, supply
from ipamd.core.address import parse_cidr
from ipamd.core.facts import Place, Withdrawn
from ipamd.core.reserve import ReservePolicy
from ipamd.store.batch import gather
from ipamd.store.draft import Draft, Limits
from tests.core.cluster import Cluster
from tests.store.cases import Case, written

RESERVE = "ipamd-reserve-n1"


@pytest.fixture
def case() -> Case:
    """A node with a block of 64 of each IP version, 16 addresses of it in reserve."""
    made = Case()
    made.pool("four", "10.0.0.0/16")
    made.pool("six", "fd00::/64")
    made.claim("four")
    made.claim("six")
    return made


def block_keys(draft: Draft) -> list[str]:
    """The keys of the blocks that a transaction writes."""
    return [change.key for change in draft.changes if keys.kind_of(change.key) is keys.Kind.BLOCK]


def handles(draft: Draft) -> dict[str, dict[str, int] | None]:
    """What a transaction makes of handles; None: it deletes the record."""
    return {
        keys.name_of(change.key): json.loads(change.value)["block"] if change.value else None
        for change in draft.changes
        if keys.kind_of(change.key) is keys.Kind.HANDLE
    }


def test_there_is_nothing_to_do_at_rest(case: Case) -> None:
    """A node whose store holds what it wants makes no transaction."""
    assert case.gather() is None


def test_an_add_is_one_transaction_of_block_and_handles(case: Case) -> None:
    """The ordinal goes from the reserve to the pod, its handle is made, and the reserve is full again, all at once."""
    assigned = case.add("a")
    draft = case.gather()
    assert draft is not None
    assert len(draft.changes) == len(block_keys(draft)) + len(handles(draft)) <= 3
    assert handles(draft)["k8s-pod-network.a"] == {"10.0.0.0/26": 1}
    assert case.send(draft).chosen == 0
    place = assigned.places[0]
    assert case.cluster.allocations()[place] == ("k8s-pod-network.a", "n1", "")
    assert case.cluster.handles() == case.cluster.counted()
    assert case.ledger.available("four") == 16
    assert case.gather() is None


def test_an_allocation_says_pod_namespace_node_and_time(case: Case) -> None:
    """The attributes of a pod's address are those that Calico's plugin writes, the time that of the ADD."""
    place = case.add("a").places[0]
    case.boot += 5_000_000_000
    case.flush()
    block = json.loads(case.cluster.records[keys.block_key(parse_cidr(place.block))].value)
    assert block["attributes"][block["allocations"][place.ordinal]] == {
        "handle_id": "k8s-pod-network.a",
        "secondary": {
            "namespace": "default",
            "node": "n1",
            "pod": "a",
            "timestamp": "2026-11-20 23:47:41 +0000 UTC",
        },
    }


@pytest.mark.parametrize(("family", "kind"), [(4, "ipipTunnelAddress"), (6, "vxlanV6TunnelAddress")])
def test_a_reserved_ordinal_looks_like_a_tunnels(case: Case, family: int, kind: str) -> None:
    """The reserve of a block shares one attribute, of a type that Calico's programs leave alone."""
    pool = {4: "four", 6: "six"}[family]
    block = case.ledger.blocks_of(pool)[0]
    stored = json.loads(case.cluster.records[keys.block_key(block.net)].value)
    assert stored["attributes"] == [
        {
            "handle_id": RESERVE,
            "secondary": {
                "node": "n1",
                "note": "ipamd reserve",
                "timestamp": "2026-11-20 23:47:41 +0000 UTC",
                "type": kind,
            },
        }
    ]


def test_several_requests_share_a_transaction(case: Case) -> None:
    """ADDs and DELs that came since the last transaction go into one."""
    for name in ("a", "b", "c"):
        case.add(name, 4, 6)
    case.flush()
    case.delete("a")
    case.add("d")
    case.delete("b")
    case.add("e", 6)
    assert case.flush() == 1
    names = {handle for handle, _node, _kind in case.cluster.allocations().values()}
    assert names == {RESERVE, *(f"k8s-pod-network.{name}" for name in "cde")}
    assert case.cluster.handles() == case.cluster.counted()


def test_a_dual_stack_pod_has_one_handle_for_both_blocks(case: Case) -> None:
    """The two blocks and the handle that counts both change in one transaction."""
    case.add("a", 4, 6)
    draft = case.gather()
    assert draft is not None
    assert len(block_keys(draft)) == 2
    assert handles(draft)["k8s-pod-network.a"] == {"10.0.0.0/26": 1, "fd00::/122": 1}


def test_two_interfaces_share_a_handle(case: Case) -> None:
    """Two interfaces of a container are counted by one handle; a DEL of one leaves the other's address."""
    first = case.add("a").places[0]
    second = case.add("a", interface="net1").places[0]
    case.flush()
    assert case.cluster.handles()["k8s-pod-network.a"] == {"10.0.0.0/26": 2}
    case.delete("a")
    case.flush()
    assert case.cluster.handles()["k8s-pod-network.a"] == {"10.0.0.0/26": 1}
    assert case.cluster.allocations()[second][0] == "k8s-pod-network.a"
    assert case.cluster.allocations().get(first, (RESERVE,))[0] == RESERVE
    case.delete("a", "net1")
    case.flush()
    assert "k8s-pod-network.a" not in case.cluster.handles()


def test_an_unknown_handle_is_learnt_from_the_refusal(case: Case) -> None:
    """A handle that is there although nobody told is the reason of one conflict, not of two; its counts are kept."""
    other = Place("10.0.9.0/26", 0)
    case.cluster.make(other.block, "host:n2", 1)
    case.cluster.take(other, "k8s-pod-network.a", {"node": "n1"})
    case.add("a")
    assert case.flush() == 2
    assert case.cluster.handles()["k8s-pod-network.a"] == {"10.0.0.0/26": 1, "10.0.9.0/26": 1}
    case.delete("a")
    case.flush()
    assert case.cluster.handles()["k8s-pod-network.a"] == {"10.0.9.0/26": 1}


def test_a_foreign_write_costs_one_conflict(case: Case) -> None:
    """A block that a stranger changed meanwhile is learnt from the refusal, and written with both changes."""
    case.add("a")
    taken = Place("10.0.0.0/26", 40)
    case.cluster.take(taken, "k8s-pod-network.far", {"node": "n2"})
    assert case.flush() == 2
    assert case.cluster.allocations()[taken][0] == "k8s-pod-network.far"
    assert case.cluster.handles() == case.cluster.counted()


def test_a_handle_that_a_stranger_deleted_is_written_again() -> None:
    """An operator frees a living pod's address: the next flush writes allocation and handle, not one of them."""
    case = Case()
    case.pool("four", "10.0.0.0/16")
    case.claim("four")
    place = case.add("a").places[0]
    case.flush()
    case.cluster.free(place)
    case.hear()
    case.flush()
    assert case.cluster.allocations()[place][0] == "k8s-pod-network.a"
    assert case.cluster.handles() == case.cluster.counted()


# --- the reserve ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "reserved"), [(28, 14), (29, 6), (30, 4), (31, 2), (32, 1)], ids=str)
def test_two_ordinals_of_a_block_stay_for_the_node_agent(size: int, reserved: int) -> None:
    """A block of 8 or more keeps two ordinals unreserved, for tunnel addresses; smaller ones cannot afford it."""
    case = Case()
    case.pool("p", "10.0.0.0/24", blockSize=size)
    case.claim("p")
    assert case.ledger.available("p") == reserved
    case.flush()
    assert case.ledger.available("p") == reserved


def test_the_two_spare_ordinals_go_to_who_waits() -> None:
    """While an ADD waits the spare ordinals are reserved too: no free address is withheld from a pod."""
    case = Case()
    case.pool("p", "10.0.0.0/29", blockSize=29)
    case.claim("p")
    for number in range(6):
        case.add(f"c{number}")
    case.flush()
    assert case.ledger.available("p") == 0
    case.ledger.reserve("p", case.boot).waiting = 1
    case.flush()
    assert case.ledger.available("p") == 2


def test_reservations_are_never_reserved() -> None:
    """Ordinals that an IPReservation names, alone or by range, stay free, also with strict affinity."""
    case = Case()
    case.put(keys.CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":true}')
    spec = {"metadata": {"name": "r"}, "spec": {"reservedCIDRs": ["10.0.0.3", "10.0.0.8/29", "fd00::/64"]}}
    case.put(keys.RESERVATIONS + "r", json.dumps(spec).encode())
    case.pool("p", "10.0.0.0/26")
    case.claim("p")
    case.flush()
    reserved = {place.ordinal for place, (handle, _n, _k) in case.cluster.allocations().items() if handle == RESERVE}
    assert not reserved & {3, *range(8, 16)}
    assert len(reserved) == 64 - 9 - supply.SPARE


def test_a_reservation_made_later_takes_its_ordinals_out_of_the_reserve() -> None:
    """Ordinals reserved before the IPReservation came are withdrawn: no pod gets them any more."""
    case = Case()
    case.pool("p", "10.0.0.0/26")
    case.claim("p")
    spec = {"metadata": {"name": "r"}, "spec": {"reservedCIDRs": ["10.0.0.0/30"]}}
    case.put(keys.RESERVATIONS + "r", json.dumps(spec).encode())
    case.flush()
    assert not {0, 1, 2, 3} & set(case.ledger.blocks["10.0.0.0/26"].line())
    assert not {0, 1, 2, 3} & {place.ordinal for place in case.cluster.allocations()}
    assert any(isinstance(fact, Withdrawn) for fact in case.facts)


def test_strict_affinity_reserves_all() -> None:
    """Where nobody may borrow, all free ordinals but the spare ones are reserved, and none goes back."""
    case = Case()
    case.put(keys.CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":true}')
    case.pool("p", "10.0.0.0/26")
    case.claim("p")
    case.flush()
    assert case.ledger.available("p") == 62
    case.add("a")
    case.delete("a")
    assert case.flush() == 0
    assert case.ledger.available("p") == 62


def test_a_locked_store_gets_what_was_promised_and_nothing_else(case: Case) -> None:
    """Under a lock an acknowledged ADD and a DEL are flushed; nothing is topped up, given back or claimed."""
    for number in range(14):
        case.add(f"c{number}")
    case.put(keys.CLUSTER_INFORMATION, b'{"spec":{"datastoreReady":false}}')
    case.delete("c0")
    case.flush()
    assert case.cluster.handles() == case.cluster.counted()
    assert len(case.cluster.handles()) == 14  # thirteen pods and the reserve
    assert case.ledger.available("four") == 3
    assert not supply.wants_block(case.ledger, case.ledger.settings.pools["four"], case.boot)
    case.put(keys.CLUSTER_INFORMATION, b'{"spec":{"datastoreReady":true}}')
    case.flush()
    assert case.ledger.available("four") == case.ledger.reserve("four", case.boot).target == 32


def test_surplus_goes_back_with_hysteresis(case: Case) -> None:
    """A reserve grown by a burst goes back to its target when it is more than twice that, in one transaction."""
    reserve = case.ledger.reserve("four", case.boot)
    reserve.level = 62
    case.add("a")
    case.flush()
    assert case.ledger.available("four") == 61
    reserve.level = 31
    assert case.gather() is None
    reserve.level = 30
    draft = case.gather()
    assert draft is not None
    (withdrawn,) = draft.before
    assert isinstance(withdrawn, Withdrawn)
    assert len(withdrawn.ordinals) == 31
    case.send(draft)
    assert case.ledger.available("four") == 30
    assert case.gather() is None


def test_what_goes_back_is_withdrawn_before_it_is_sent(case: Case) -> None:
    """From the facts on, before the store was even asked, a surplus ordinal is not handed out."""
    case.ledger.reserve("four", case.boot).level = 4
    draft = case.gather()
    assert draft is not None
    case.record(draft.before)
    gone = {ordinal for fact in draft.before if isinstance(fact, Withdrawn) for ordinal in fact.ordinals}
    assert len(gone) == 12
    assert not gone & set(case.ledger.blocks["10.0.0.0/26"].line())


def test_what_was_withdrawn_can_be_reserved_again() -> None:
    """A give-back that conflicts while a burst begins does not keep its ordinals between reserve and freedom."""
    case = Case(ReservePolicy(minimum=2, maximum=64))
    case.pool("p", "10.0.0.0/29", blockSize=29)
    reserve = case.ledger.reserve("p", case.boot)
    reserve.level = 6
    case.claim("p")
    reserve.level = 2
    draft = case.gather()
    assert draft is not None
    case.cluster.take(Place("10.0.0.0/29", 7), "vxlan-tunnel-addr-n1", {"node": "n1", "type": "vxlanTunnelAddress"})
    assert case.send(draft).chosen is None
    reserve.level, reserve.waiting = 7, 1
    case.flush()
    assert case.ledger.available("p") == 7


def test_the_reserve_of_a_disabled_pool_goes_back(case: Case) -> None:
    """A pool that no longer serves gets all of this node's reserve back; its pods stay."""
    place = case.add("a").places[0]
    case.flush()
    case.pool("four", "10.0.0.0/16", disabled=True)
    case.flush()
    assert {p: h for p, (h, _n, _k) in case.cluster.allocations().items() if p.block == place.block} == {
        place: "k8s-pod-network.a"
    }


# --- whole blocks ---------------------------------------------------------------------------------------------


def test_retiring_deletes_block_affinity_and_the_reserves_share(case: Case) -> None:
    """An idle block goes with its affinity and its part of the reserve's handle, in one transaction; one is kept."""
    case.claim("four", 1)
    draft = case.idle()
    assert draft is not None
    assert draft.before
    assert case.send(draft).chosen == 0
    assert len([cidr for cidr in case.cluster.blocks() if ":" not in cidr]) == 1
    assert case.cluster.handles() == case.cluster.counted()
    assert len([key for key in case.cluster.records if keys.kind_of(key) is keys.Kind.AFFINITY]) == 2
    assert case.idle() is None


def test_an_idle_block_that_is_taken_meanwhile_stays(case: Case) -> None:
    """A borrower who is faster than the retiring transaction keeps his address and the block."""
    case.claim("four", 1)
    draft = case.idle()
    assert draft is not None
    cidr = str(keys.cidr_of(draft.changes[0].key))
    free = Place(cidr, case.cluster.blocks()[cidr].unallocated[0])
    case.cluster.take(free, "k8s-pod-network.far", {"node": "n2"})
    assert case.send(draft).chosen is None
    case.flush()
    assert case.cluster.allocations()[free][0] == "k8s-pod-network.far"
    assert case.idle() is None


def test_a_block_with_a_pod_is_not_idle(case: Case) -> None:
    """A block in which a pod holds an address, in the store or in memory only, is never given back."""
    case.claim("four", 1)
    case.add("a")
    idle = case.idle()
    assert idle is None or "10.0.0.0-26" not in idle.changes[0].key
    assert "10.0.0.0/26" in case.cluster.blocks()


def test_a_block_deleted_beneath_living_pods_is_written_again(case: Case) -> None:
    """Block, affinity and handles come back with exactly what the pods hold; then the reserve."""
    places = {name: case.add(name, 4, 6).places for name in ("a", "b")}
    case.flush()
    for cidr in ("10.0.0.0/26", "fd00::/122"):
        case.cluster.drop(cidr, "n1")
    case.hear()
    case.flush()
    allocations = case.cluster.allocations()
    for name, held in places.items():
        assert [allocations[place][0] for place in held] == [f"k8s-pod-network.{name}"] * 2
    assert case.cluster.handles() == case.cluster.counted()
    assert keys.affinity_key("n1", parse_cidr("10.0.0.0/26")) in case.cluster.records
    assert case.cluster.block("10.0.0.0/26").affinity == "host:n1"


def test_a_damaged_block_does_not_stop_the_others(case: Case) -> None:
    """A block that cannot be understood is left alone, and reported; what concerns other blocks is flushed."""
    case.add("a", 4)
    place = case.add("b", 6).places[0]
    key = keys.block_key(parse_cidr("10.0.0.0/26"))
    case.put(key, b"nonsense")
    assert key in case.ledger.damaged
    case.flush()
    assert case.cluster_without("10.0.0.0/26")[place][0] == "k8s-pod-network.b"
    assert case.cluster.records[key].value == b"nonsense"


# --- size and order -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(operations=4), Limits(operations=8), Limits(size=4000), Limits(size=1)])
def test_the_caps_are_respected(case: Case, limits: Limits) -> None:
    """No transaction has more operations or bytes than allowed, but at least one change; all of them do the work."""
    for number in range(16):
        case.add(f"c{number}", 4, 6)
    for count in range(100):
        draft = case.gather(limits)
        if draft is None:
            break
        size = sum(len(change.key) + len(change.value or b"") for change in draft.changes)
        assert len(draft.changes) <= max(limits.operations, 6)
        assert size <= limits.size or len(block_keys(draft)) == 1
        assert case.send(draft).chosen == 0
        assert draft.full or case.gather(limits) is None or count < 99
    assert case.cluster.handles() == case.cluster.counted()
    assert len(case.cluster.handles()) == 17


def test_blocks_that_come_back_count_their_affinities() -> None:
    """A transaction that writes vanished blocks again stays within the operations, their affinities included."""
    case = Case(ReservePolicy(minimum=4))
    case.pool("p", "10.0.0.0/24", blockSize=30)
    for index in range(30):
        cidr = case.claim("p", index)
        for number in range(4):
            case.add(f"c{index}-{number}")
        case.flush()
        case.cluster.drop(cidr, "n1")
    case.hear()
    while (draft := case.gather(Limits(operations=16))) is not None:
        assert len(draft.changes) <= 16
        assert case.send(draft).chosen == 0 or case.gather() is not None
    assert case.cluster.handles() == case.cluster.counted()
    assert len(case.cluster.allocations()) == 120


def prefixes_are_safe(before: Cluster, draft: Draft) -> None:
    """Apply the changes one by one, as a store of single objects would; after each the records must be safe."""
    one_by_one = Cluster()
    one_by_one.records, one_by_one.revision = dict(before.records), before.revision
    for change in draft.changes:
        assert one_by_one.commit([change]).chosen == 0
        says, counted = one_by_one.handles(), one_by_one.counted()
        for handle, blocks in counted.items():
            for cidr, count in blocks.items():
                if handle == RESERVE:
                    assert handle in says
                else:
                    assert says.get(handle, {}).get(cidr, 0) >= count, (handle, cidr)
        for cidr, block in one_by_one.blocks().items():
            if block.affinity == "host:n1":
                assert keys.affinity_key("n1", parse_cidr(cidr)) in one_by_one.records


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "del", "flush", "vanish"]),
            st.integers(0, 9),
            st.sampled_from([(4,), (6,), (4, 6)]),
        ),
        max_size=40,
    )
)
def test_every_prefix_of_a_transaction_is_safe(history: list[tuple[str, int, tuple[int, ...]]]) -> None:
    """After each single change every pod's ordinal is counted by its handle, every block of ours has an affinity."""
    case = Case()
    case.pool("four", "10.0.0.0/16", blockSize=28)
    case.pool("six", "fd00::/64", blockSize=124)
    for index in range(2):
        case.claim("four", index)
        case.claim("six", index)
    for kind, number, families in history:
        if kind == "add" and min(case.ledger.available("four"), case.ledger.available("six")):
            case.add(f"c{number}", *families)
        elif kind == "del":
            case.delete(f"c{number}")
        elif kind == "vanish" and number < 1:
            case.cluster.drop("10.0.0.0/28", "n1")
            case.hear()
        elif kind == "flush":
            while (draft := case.gather(Limits(operations=6))) is not None:
                if all(case.cluster._revision(change.key) == change.expected for change in draft.changes):
                    prefixes_are_safe(case.cluster, draft)
                case.send(draft)


def test_the_same_inputs_make_the_same_transaction() -> None:
    """Nothing but the ledger, what is known and the time goes into a transaction: it is equal, byte for byte."""

    def once() -> list[tuple[object, ...]]:
        case = Case()
        case.pool("four", "10.0.0.0/16")
        case.pool("six", "fd00::/64")
        case.claim("four")
        case.claim("six")
        made = []
        for number in range(12):
            case.add(f"c{number}", 4, 6)
            if number % 3 == 2:
                case.delete(f"c{number - 1}")
                draft = case.gather()
                assert draft is not None
                made.append((draft.changes, draft.before, draft.full))
                case.send(draft)
        return made

    assert once() == once()


def test_what_is_decided_is_written_whatever_happens_meanwhile() -> None:
    """A transaction is written later than it is decided; ADDs, DELs and the store's news in between change nothing of it.

    A stranger's change of a block makes the store refuse it, as if it had been written, and was on its way, before.
    """

    def decided() -> tuple[Case, Draft]:
        case = Case()
        case.pool("four", "10.0.0.0/16", blockSize=28)
        case.claim("four", 0)
        case.claim("four", 1)
        for name in "abc":
            case.add(name)
        case.flush()
        for name in "defgh":
            case.add(name)
        case.delete("a")
        draft = gather(case.ledger, case.known, Limits(), case.now)
        assert draft is not None
        case.ledger.doubt(draft.blocks)
        return case, draft

    _case, at_once = decided()
    case, late = decided()
    case.delete("d")
    case.ledger.settle()
    case.delete("b")
    case.add("i")
    cidr, block = next(iter(case.ledger.blocks.items()))
    case.cluster.drop(cidr, "n1")
    case.hear()
    assert written(late).changes == written(at_once).changes
    assert keys.block_key(block.net) in late.blocks
    assert case.send(late).chosen is None
    case.flush()
    assert case.cluster.handles() == case.cluster.counted()
    assert {f"k8s-pod-network.{name}" for name in "cefghi"} | {RESERVE} == case.cluster.handles().keys()


def test_a_given_up_transaction_that_arrives_late_does_not_take_a_pods_address() -> None:
    """A transaction that was lost, looked for in vain and then arrives after all is overruled where it disagrees.

    It names a pod that is gone meanwhile, and whose address a living pod has got from memory.
    """
    case = Case(ReservePolicy(minimum=1))
    case.pool("p", "10.0.0.0/30", blockSize=30)
    case.ledger.reserve("p", case.boot).level = 4
    case.claim("p")
    place = case.add("gone").places[0]
    adrift = case.gather()
    assert adrift is not None
    case.delete("gone")
    assert case.gather() is None  # settled: the store does not know of it
    living = {name: case.add(name).places[0] for name in ("a", "b", "c", "d")}
    assert place == living["d"]
    assert case.cluster.commit(adrift.changes).chosen == 0
    case.hear()
    case.flush()
    allocations = case.cluster.allocations()
    assert {name: allocations[held][0] for name, held in living.items()} == {
        name: f"k8s-pod-network.{name}" for name in living
    }
    assert case.cluster.handles() == case.cluster.counted()


def test_a_given_up_transaction_that_arrives_late_leaks_nothing() -> None:
    """The same when nobody has got the address meanwhile: it goes back into the reserve."""
    case = Case(ReservePolicy(minimum=4))
    case.pool("p", "10.0.0.0/30", blockSize=30)
    case.claim("p")
    case.add("gone")
    adrift = case.gather()
    assert adrift is not None
    case.delete("gone")
    assert case.gather() is None
    assert case.cluster.commit(adrift.changes).chosen == 0
    case.hear()
    case.flush()
    assert case.cluster.handles() == case.cluster.counted()
    assert case.cluster.handles().keys() == {RESERVE}
    assert case.ledger.available("p") == 4


def test_a_release_frees_nothing_but_the_releasers_own(case: Case) -> None:
    """A pod that is gone before the store heard of it: its ordinal is the reserve's there, and is not freed."""
    place = case.add("a").places[0]
    case.delete("a")
    draft = gather(case.ledger, case.known, Limits(), case.now)  # before anything is settled
    if draft is not None:
        assert case.send(written(draft)).chosen == 0
    assert case.cluster.allocations()[place][0] == RESERVE
