"""host-local's ranges: what a range is, which ones are refused, in which order addresses are given out."""

import pytest

from ipamd.core.check import check
from ipamd.core.clock import Now
from ipamd.core.errors import RefusedError
from ipamd.core.facts import Attachment, Fact, RangeAssigned, RangeReleased, Rebooted
from ipamd.core.ledger import Ledger
from ipamd.core.ranges import RangeSet, check_sets, read_address, read_range
from ipamd.core.request import RangeAdded, RangeRequest
from ipamd.core.reserve import ReservePolicy
from tests.core.snapshot import differences, replay, snapshot

POLICY = ReservePolicy(minimum=4)


class Node:
    """A ledger, asked for addresses of range sets; ``facts`` is what it wanted to have written down."""

    def __init__(self) -> None:
        self.ledger = Ledger("n1", POLICY)
        self.facts: list[Fact] = []
        self.clock = 0

    def add(self, container: str, *sets: RangeSet, wanted: tuple[str, ...] = (), network: str = "net") -> list[str]:
        """ADD; the addresses it is answered with."""
        self.clock += 1
        asked = tuple(map(read_address, wanted))
        request = RangeRequest(Attachment(network, container, "eth0"), sets, {}, self.clock, asked)
        decided = self.ledger.add_from_ranges(request, Now(self.clock, self.clock))
        self.facts += decided.facts
        assert check(self.ledger) == []
        return list(decided.assigned.addresses)

    def delete(self, container: str, network: str = "net") -> None:
        """DEL."""
        self.clock += 1
        self.facts += self.ledger.delete(Attachment(network, container, "eth0"), "", self.clock).facts
        assert check(self.ledger) == []

    def refused(self, container: str, *sets: RangeSet, wanted: tuple[str, ...] = ()) -> tuple[int, str]:
        """ADD; the code and text of its refusal."""
        with pytest.raises(RefusedError) as caught:
            self.add(container, *sets, wanted=wanted)
        return int(caught.value.code), caught.value.msg


@pytest.fixture
def node() -> Node:
    """A node that has given out nothing."""
    return Node()


def one(subnet: str, start: str = "", end: str = "", gateway: str = "") -> RangeSet:
    """A set of one range."""
    return (read_range(subnet, start, end, gateway),)


SMALL = one("10.1.0.0/29")  # .1 is the gateway, .2 to .6 are for pods
SIX = one("fd00::/126")  # ::1 is the gateway, ::2 and ::3 are for pods


# --- ranges ---------------------------------------------------------------------------------------------------


def test_a_range_leaves_out_the_network_and_in_ipv4_the_broadcast_address() -> None:
    """From the address after the subnet's own to the last one that is no IPv4 broadcast; the first is the gateway."""
    assert (str(SMALL[0]), SMALL[0].prefix, SMALL[0].gateway) == ("10.1.0.1-10.1.0.6", 29, read_address("10.1.0.1"))
    assert str(SIX[0]) == "fd00::1-fd00::3"


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (("10.1.0.0",), "subnet '10.1.0.0' is not a CIDR"),
        (("10.1.0.0/255.255.255.0",), "subnet '10.1.0.0/255.255.255.0' is not a CIDR"),
        (("fe80::%eth0/64",), "subnet 'fe80::%eth0/64' is not a CIDR"),
        (("10.1.0.7/24",), "10.1.0.7/24 has host bits set"),
        (("::ffff:10.1.0.0/120",), "subnet ::ffff:10.1.0.0/120 is IPv4 written as IPv6"),
        (("10.1.0.0/31",), "subnet 10.1.0.0/31 is too small; the longest prefix is /30"),
        (("fd00::/127",), "subnet fd00::/127 is too small; the longest prefix is /126"),
        (("10.1.0.0/24", "10.2.0.9"), "rangeStart 10.2.0.9 is not in subnet 10.1.0.0/24"),
        (("10.1.0.0/24", "", "fd00::9"), "rangeEnd fd00::9 is not in subnet 10.1.0.0/24"),
        (
            ("10.1.0.0/24", "10.1.0.9", "10.1.0.8"),
            "the range of 10.1.0.0/24 with rangeStart 10.1.0.9, rangeEnd 10.1.0.8 has no address",
        ),
        (("10.1.0.0/24", "10.1.0.255"), "the range of 10.1.0.0/24 with rangeStart 10.1.0.255 has no address"),
        (("fe80::/64", "", "", "fe80::1%eth0"), "'fe80::1%eth0' has a zone"),
    ],
)
def test_a_range_that_is_refused(texts: tuple[str, ...], why: str) -> None:
    """What host-local refuses (and an IPv4 range that would begin with the broadcast address and leave the subnet)."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared
        read_range(*texts)
    assert str(caught.value) == why


@pytest.mark.parametrize(
    ("sets", "why"),
    [
        ([SMALL, ()], "range set 1 is empty"),
        ([SMALL + SIX], "range set 0 mixes IPv4 and IPv6"),
        ([SMALL, SIX, one("10.1.0.0/30")], "the ranges 10.1.0.1-10.1.0.6 and 10.1.0.1-10.1.0.2 overlap"),
        (
            [one("10.1.0.0/24", "10.1.0.20") + one("10.1.0.0/24", "10.1.0.9", "10.1.0.20")],
            "the ranges 10.1.0.9-10.1.0.20 and 10.1.0.20-10.1.0.254 overlap",
        ),
    ],
)
def test_range_sets_that_are_refused(sets: list[RangeSet], why: str) -> None:
    """No set is empty or of both IP versions, and no address is in two ranges."""
    with pytest.raises(ValueError, match=f"^{why}$"):
        check_sets(sets)


def test_ranges_side_by_side_do_not_overlap() -> None:
    """Two ranges of one subnet may touch."""
    check_sets([one("10.1.0.0/24", "", "10.1.0.9") + one("10.1.0.0/24", "10.1.0.10")])


# --- the order of addresses -----------------------------------------------------------------------------------


def test_addresses_go_round(node: Node) -> None:
    """The next address follows the one last given out, also if that is free again; after the end comes the start."""
    assert [node.add("a", SMALL), node.add("b", SMALL)] == [["10.1.0.2"], ["10.1.0.3"]]
    node.delete("b")
    assert [node.add(who, SMALL)[0] for who in "cde"] == ["10.1.0.4", "10.1.0.5", "10.1.0.6"]
    assert node.add("f", SMALL) == ["10.1.0.3"]


def test_a_set_of_several_ranges_is_used_range_by_range(node: Node) -> None:
    """When a range ends the next one follows, with a gateway of its own, and after the last one the first."""
    ranges = one("10.1.0.0/30") + one("10.2.0.0/29", "10.2.0.5", "", "10.2.0.6") + one("10.3.0.0/30")
    assert [node.add(who, ranges)[0] for who in "abc"] == ["10.1.0.2", "10.2.0.5", "10.3.0.2"]
    node.delete("b")
    node.delete("a")
    assert [node.add(who, ranges)[0] for who in "de"] == ["10.1.0.2", "10.2.0.5"]


def test_one_address_of_each_set(node: Node) -> None:
    """An attachment has an address of every range set, in the sets' order; each set goes round by itself."""
    assert node.add("a", SIX, SMALL) == ["fd00::2", "10.1.0.2"]
    assert node.add("b", SIX, SMALL) == ["fd00::3", "10.1.0.3"]


def test_a_set_without_a_free_address(node: Node) -> None:
    """Code 106; nothing is assigned of the other sets either, but their turn has passed, as with host-local."""
    node.add("a", SMALL, SIX)
    node.add("b", SMALL, SIX)
    assert node.refused("c", SMALL, SIX) == (
        106,
        (
            "cannot assign an address to container c: range set 1 of network net (fd00::1-fd00::3) has no free address; "
            "widen it, or delete pods that are no longer needed"
        ),
    )
    assert node.add("d", SMALL) == ["10.1.0.5"]


def test_a_range_with_nothing_but_the_gateway(node: Node) -> None:
    """The gateway is never given out."""
    assert node.refused("a", one("10.1.0.0/24", "10.1.0.9", "10.1.0.9", "10.1.0.9"))[0] == 106


def test_networks_are_address_spaces_of_their_own(node: Node) -> None:
    """As with host-local, what one network has given out is free in another."""
    assert node.add("a", SMALL) == node.add("a", SMALL, network="other") == ["10.1.0.2"]
    node.delete("a", network="other")
    assert node.add("b", SMALL, network="other") == ["10.1.0.3"]
    assert node.ledger.ranges.networks["net"].holders.keys() == {read_address("10.1.0.2")}


def test_the_last_free_address_of_a_large_range_is_found(node: Node) -> None:
    """A /16 with all but one address in use: whoever wants one gets it, all the way round from where it begins."""
    node.add("a", large := one("10.8.0.0/16"))
    network = node.ledger.ranges.networks["net"]
    for chunk in range(16):
        network.used[4, (10 << 24 | 8 << 16) + (chunk << 12) >> 12] = (1 << 4096) - 1
    network.free(read_address("10.8.0.2"))
    assert network.choose(0, large) == read_address("10.8.0.2")


# --- requested addresses --------------------------------------------------------------------------------------


def test_a_requested_address_is_the_one_of_its_set(node: Node) -> None:
    """The set that has the requested address gives it, the others what is next; the round goes on after it."""
    assert node.add("a", SMALL, SIX, wanted=("fd00::3", "10.1.0.4")) == ["10.1.0.4", "fd00::3"]
    assert node.add("b", SMALL, SIX) == ["10.1.0.5", "fd00::2"]


@pytest.mark.parametrize(
    ("wanted", "code", "why"),
    [
        (("10.1.0.2",), 104, "container a (eth0) has it; ask for another one, or for none"),
        (("10.1.0.1",), 105, "it is the gateway of network net (10.1.0.1-10.1.0.6); ask for another one, or for none"),
        (
            ("10.9.0.2",),
            105,
            "it is in no range of network net (10.1.0.1-10.1.0.6); ask for another one, or for none",
        ),
        (
            ("10.1.0.5", "10.1.0.6"),
            105,
            (
                "it would be the second one of its range set of network net (10.1.0.1-10.1.0.6); "
                "ask for another one, or for none"
            ),
        ),
    ],
)
def test_a_requested_address_that_cannot_be_had(node: Node, wanted: tuple[str, ...], code: int, why: str) -> None:
    """In use, the gateway, in no range, or one too many: refused, and nothing is assigned."""
    node.add("a", SMALL)
    refused = wanted[-1]
    text = f"cannot assign the requested address {refused} to container b: {why}"
    assert node.refused("b", SMALL, wanted=wanted) == (code, text)
    assert len(node.ledger.ranges.holdings) == 1


# --- attachments ----------------------------------------------------------------------------------------------


def test_the_same_add_gets_the_same_addresses(node: Node) -> None:
    """Better than host-local, which refuses it: a repeated ADD has nothing to write and the same answer."""
    first = node.add("a", SMALL, SIX)
    assert node.add("a", SMALL, SIX) == first
    assert len(node.facts) == 1


def test_the_same_add_after_its_ranges_were_changed(node: Node) -> None:
    """What the attachment has cannot be answered by ranges that do not have it: code 7."""
    node.add("a", SMALL)
    assert node.refused("a", one("10.9.0.0/24")) == (
        7,
        (
            "cannot assign an address to container a: it has 10.1.0.2 of network net, and range set 0 "
            "(10.9.0.1-10.9.0.254) has none of these: the ranges were changed; delete and recreate the pod"
        ),
    )


def test_an_add_that_its_del_overtook(node: Node) -> None:
    """An ADD that began before the DEL of the same attachment and comes after it is refused: code 103."""
    node.clock = 10
    node.delete("a")
    node.clock = 5
    assert node.refused("a", SMALL)[0] == 103
    node.clock = 20
    assert node.add("a", SMALL) == ["10.1.0.2"]


def test_an_add_that_could_not_be_written_down(node: Node) -> None:
    """Taken back, it leaves no holder."""
    node.add("a", SMALL, SIX)
    (assigned,) = node.facts
    assert isinstance(assigned, RangeAssigned)
    node.ledger.undo(RangeAdded(assigned, ()))
    assert check(node.ledger) == []
    assert not node.ledger.ranges.holdings


def test_a_del_in_pool_mode_releases_ranges_too(node: Node) -> None:
    """A DEL is about the attachment, not about its configuration, which may have changed since the ADD."""
    node.add("a", SMALL)
    node.delete("a")
    assert not node.ledger.ranges.holdings
    assert isinstance(node.facts[-1], RangeReleased)
    assert node.ledger.strays == {}, "nothing to look up in the store"


# --- replay ---------------------------------------------------------------------------------------------------


def test_facts_and_checkpoint_make_the_same_ledger(node: Node) -> None:
    """Replayed facts, and a checkpoint, give a ledger equal to the first, also in what comes next."""
    for who in "abc":
        node.add(who, SMALL, one("fd00::/64"))
    node.delete("c")
    for facts in (node.facts, list(node.ledger.checkpoint())):
        again = Node()
        again.ledger = replay("n1", POLICY, facts)
        again.clock = node.clock
        assert differences(snapshot(node.ledger), snapshot(again.ledger)) == []
        assert again.add("d", SMALL, one("fd00::/64")) == ["10.1.0.5", "fd00::5"]


def test_a_replay_in_which_a_del_is_missing() -> None:
    """An address that was given out again had been released: the later fact counts."""
    ledger = Ledger("n1", POLICY)
    for who in "ab":
        ledger.apply(RangeAssigned(Attachment("net", who, "eth0"), ("10.1.0.2",), {}, 1))
    assert check(ledger) == []
    assert [held.container for held in ledger.ranges.holdings] == ["b"]


def test_check_finds_an_address_that_nobody_holds(node: Node) -> None:
    """An address that is marked and has no attachment, or the other way round, is a broken invariant."""
    node.add("a", SMALL)
    node.ledger.ranges.networks["net"].hold(read_address("10.1.0.3"), Attachment("net", "b", "eth0"))
    assert check(node.ledger) == [
        "network net: its attachments hold 1 addresses, 2 have a holder, and 2 are marked as used"
    ]


def test_a_del_that_was_kept_on_its_way_ends_no_later_life(node: Node) -> None:
    """A DEL that began before the ADD releases nothing; after a reboot every DEL is later than what was before it."""
    node.clock = 10
    node.add("a", SMALL)
    node.clock = 4
    node.delete("a")
    assert len(node.ledger.ranges.holdings) == 1
    node.ledger.apply(Rebooted())
    node.delete("a")
    assert not node.ledger.ranges.holdings
