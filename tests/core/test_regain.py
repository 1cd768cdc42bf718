"""What the runtime says lives, and the ledger does not know: taken back where the store has it for this node."""

import pytest

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.check import check
from ipamd.core.facts import Assigned, Attachment, Committed, Place, RangeAssigned, RangeCursors
from ipamd.core.ledger import Ledger
from ipamd.core.records import BlockRecord
from ipamd.core.regain import Living, conflicts, regain
from ipamd.core.reserve import ReservePolicy
from ipamd.store import batch
from ipamd.store.draft import Limits
from ipamd.store.known import Known
from tests.core.blocks import image
from tests.core.test_leaks import NOW
from tests.nodes import pool_record
from tests.store.cases import written

CIDR = "10.0.0.0/29"
OURS, LOST = "ipamd-reserve-n1.bbbbbbbb", "ipamd-reserve-n1.aaaaaaaa"


def living(container: str, *ordinals: int) -> Living:
    """A container that lives with these addresses of the block."""
    labels = {"namespace": "default", "pod": f"pod-{container}"}
    return Living(Attachment("net", container, "eth0"), tuple((4, 0x0A000000 + o) for o in ordinals), labels)


@pytest.fixture
def ledger() -> Ledger:
    """A node whose block has addresses in its reserve, a lost instance's, a pod's of its own and another node's."""
    made = Ledger("n1", ReservePolicy(), None, "bbbbbbbb")
    key, value = pool_record("p", "10.0.0.0/16", blockSize=29)
    handles = {0: OURS, 1: OURS, 2: LOST, 3: LOST, 4: "net.adopted"}
    made.apply(Committed(key, 1, value))
    made.apply(Committed(keys.block_key(parse_cidr(CIDR)), 2, image(CIDR, handles)))
    made.synced = True
    return made


@pytest.mark.parametrize(
    ("container", "ordinal"), [("in-reserve", 1), ("in-lost-reserve", 2), ("adopted", 4), ("free", 5)]
)
def test_what_this_node_has_in_any_way_is_taken_back(ledger: Ledger, container: str, ordinal: int) -> None:
    """In the reserve, in a lost one, under the container's handle, or free in the node's block: it is the pod's."""
    (fact,) = regain(ledger, [living(container, ordinal)], NOW).facts
    assert isinstance(fact, Assigned)
    assert (fact.handle, fact.places) == (f"net.{container}", (Place(CIDR, ordinal),))
    assert fact.labels == {"namespace": "default", "pod": f"pod-{container}"}
    block = ledger.blocks[CIDR]
    assert block.desired == {ordinal: fact}
    assert ordinal not in block.stranded
    assert check(ledger) == []
    assert regain(ledger, [living(container, ordinal)], NOW).facts == []
    assert conflicts(ledger, [living(container, ordinal)], {}) == []


def test_what_was_taken_back_from_a_lost_reserve_is_flushed(ledger: Ledger) -> None:
    """The store gets the pod's handle in place of the lost instance's, and the pod's DEL frees the address."""
    regain(ledger, [living("c", 2)], NOW)
    draft = batch.gather(ledger, Known(), Limits(), NOW)
    assert draft is not None
    (value,) = [change.value for change in written(draft).changes if keys.is_block(change.key)]
    assert value is not None
    owner = BlockRecord(value).owner(2)
    assert owner is not None
    assert owner.handle == "net.c"
    ledger.apply(Committed(keys.block_key(parse_cidr(CIDR)), 3, value))
    assert check(ledger) == []
    ledger.delete(Attachment("net", "c", "eth0"), "", NOW.boot)
    assert ledger.blocks[CIDR].releasing == {2: "net.c"}


def test_a_pod_that_ends_before_the_flush_leaves_the_address_in_quarantine(ledger: Ledger) -> None:
    """Nobody gets it: the lost instance's reserve holds it as before."""
    regain(ledger, [living("c", 2)], NOW)
    ledger.delete(Attachment("net", "c", "eth0"), "", NOW.boot)
    assert set(ledger.blocks[CIDR].stranded) == {2, 3}
    assert check(ledger) == []


def test_a_replay_takes_it_back_too(ledger: Ledger) -> None:
    """The fact and the store's image give the same ledger after a restart, in whatever order they are read."""
    facts = [*ledger.checkpoint(), *regain(ledger, [living("c", 2)], NOW).facts]
    for order in (facts, list(ledger.checkpoint())):
        again = Ledger("n1", ReservePolicy(), None, "bbbbbbbb")
        again.replay(order)
        assert set(again.blocks[CIDR].unflushed) == {2}
        assert again.blocks[CIDR].contested == {}
        assert check(again) == []


def test_an_address_of_somebody_else_is_told_and_not_taken(ledger: Ledger) -> None:
    """Held by another attachment here, or by another node's pod: both are named, nothing changes."""
    (held,) = regain(ledger, [living("mine", 1)], NOW).facts
    other = image(CIDR, {0: OURS, 5: "net.theirs"}, node="n2")
    ledger.apply(Committed(keys.block_key(parse_cidr(CIDR)), 3, other))
    late = living("late", 1, 5)
    assert regain(ledger, [late], NOW).facts == []
    assert ledger.holdings == {held.attachment: held}
    first, second = conflicts(ledger, [late], {})
    assert first == (
        "address 10.0.0.1 has two holders: the container runtime says default/pod-late (container late) on this node, "
        "and this node gave it to default/pod-mine on this node; delete one of the two pods"
    )
    assert "address 10.0.0.5 has two holders" in second
    assert "the store gives it to handle net.theirs on node n2" in second


def test_a_block_that_the_ledger_has_no_part_in_is_to_be_read(ledger: Ledger) -> None:
    """It is named, and who has the address there is told; an address of no pool is none of ours."""
    far = Living(Attachment("net", "c", "eth0"), ((4, 0x0A000101), (4, 0x01010101)), {})
    cidr = parse_cidr("10.0.1.0/29")
    assert regain(ledger, [far], NOW).unseen == {cidr}
    assert conflicts(ledger, [far], {}) == []
    others = {cidr: BlockRecord(image("10.0.1.0/29", {1: "net.other"}, node="n2"))}
    (finding,) = conflicts(ledger, [far], others)
    assert "says container c on this node, and the store gives it to handle net.other on node n2" in finding


def test_what_was_deleted_is_not_taken_back(ledger: Ledger) -> None:
    """The runtime removes its file only after the DEL: a DEL that was carried out counts."""
    attachment = Attachment("net", "adopted", "eth0")
    ledger.delete(attachment, "", NOW.boot)
    assert regain(ledger, [living("adopted", 4)], NOW).facts == []
    ledger.tombstones.clear()
    assert regain(ledger, [living("adopted", 4)], NOW).facts == []


def test_a_del_that_was_kept_while_the_daemon_was_away_still_ends_it(ledger: Ledger) -> None:
    """What is taken back counts as added before any DEL of this boot."""
    (fact,) = regain(ledger, [living("c", 2)], NOW).facts
    assert isinstance(fact, Assigned)
    assert ledger.delete(fact.attachment, "", 5).facts
    assert ledger.holdings == {}


def ranged(container: str, *hosts: int, network: str = "lan") -> Living:
    """A container that lives with these addresses of the ranges of a network, which a pool has as well."""
    addresses = tuple((4, 0x0A000000 + host) for host in hosts)
    return Living(Attachment(network, container, "eth0"), addresses, {"namespace": "default", "pod": container}, True)


@pytest.fixture
def heir() -> Ledger:
    """A node with a new state file, which has not heard of the store yet."""
    return Ledger("n1", ReservePolicy(), None, "bbbbbbbb")


def test_an_address_of_ranges_is_taken_back_though_no_store_knows_it(heir: Ledger) -> None:
    """It is the container's again, also after a restart, until its DEL; no pool has a part in it, a second look none."""
    lost = [ranged("a", 2, 2, 300), ranged("b", 2, network="other")]
    found = regain(heir, lost, NOW)
    assert [(fact.attachment.container, fact.addresses) for fact in found.facts if isinstance(fact, RangeAssigned)] == [
        ("a", ("10.0.0.2", "10.0.1.44")),
        ("b", ("10.0.0.2",)),
    ]
    assert found.unseen == set()
    assert heir.holdings == {}
    again = Ledger("n1", ReservePolicy(), None, "bbbbbbbb")
    again.replay(heir.checkpoint())
    assert again.ranges.holdings == heir.ranges.holdings
    assert regain(heir, lost, NOW).facts == []
    assert conflicts(heir, lost, {}) == []
    assert heir.delete(lost[0].attachment, "", NOW.boot).facts
    assert regain(heir, lost, NOW).facts == []
    assert heir.ranges.networks["lan"].holders == {}


def test_later_ranges_are_taken_back_of_networks_that_are_served_here(ledger: Ledger) -> None:
    """In others the reference plugin gives out the addresses, beside ipamd's pools: none of these is ever held here."""
    assert regain(ledger, [ranged("a", 2)], NOW).facts == []
    assert ledger.holdings == {}
    ledger.apply(RangeCursors("lan", {0: "10.0.0.1"}))
    assert regain(ledger, [ranged("a", 2), ranged("b", 2, network="other")], NOW).facts != []
    assert [held.network for held in ledger.ranges.holdings] == ["lan"]


def test_an_address_of_ranges_that_another_has_is_told_and_not_taken(heir: Ledger) -> None:
    """Nobody loses what the state file says; both are named."""
    regain(heir, [ranged("first", 2)], NOW)
    held = dict(heir.ranges.holdings)
    second = ranged("second", 2)
    assert regain(heir, [second], NOW).facts == []
    assert heir.ranges.holdings == held
    (finding,) = conflicts(heir, [second], {})
    assert finding == (
        "address 10.0.0.2 has two holders: the container runtime says default/second (container second) on this node, "
        "and this node gave it to default/first (container first) in network lan; delete one of the two pods"
    )
