"""Single cases of the ledger that the model meets too rarely: replays, and words of the store that come late."""

import pytest

from ipamd.core import keys
from ipamd.core import ledger as module
from ipamd.core.address import parse_cidr
from ipamd.core.check import check
from ipamd.core.facts import Committed, Draining, Fact, Place, Rebooted, Released
from ipamd.core.ledger import TOMBSTONE_AGE, Ledger
from ipamd.core.reserve import ReservePolicy
from tests.core.blocks import NODE, RESERVE, assigned, attachment, image
from tests.core.snapshot import differences, replay, snapshot

CIDR = "10.0.0.0/29"
KEY = keys.block_key(parse_cidr(CIDR))
POLICY = ReservePolicy()


def committed(revision: int, owners: dict[int, str] | None, node: str = NODE) -> Committed:
    """The store's word about the block; None: it is not there."""
    return Committed(KEY, revision, None if owners is None else image(CIDR, owners, node=node))


def test_a_deleted_block_stays_deleted_after_a_checkpoint() -> None:
    """An older image that arrives after the state file was rewritten does not bring the block's reserve back."""
    ledger = replay(NODE, POLICY, [committed(5, {0: RESERVE}), committed(9, None)])
    again = replay(NODE, POLICY, [*ledger.checkpoint(), committed(7, {0: RESERVE})])
    assert again.blocks == {}


def test_a_replayed_holding_that_the_store_gives_to_another_is_contested() -> None:
    """Read back from a checkpoint, the holding does not overwrite the other's allocation."""
    facts: list[Fact] = [committed(5, {0: "k8s-pod-network.a"}), assigned("a", (CIDR, 0))]
    ledger = replay(NODE, POLICY, [*facts, committed(6, {0: "k8s-pod-network.far"}, node="n2")])
    again = replay(NODE, POLICY, list(ledger.checkpoint()))
    assert again.blocks[CIDR].contested == {0: "k8s-pod-network.far"}
    assert again.blocks[CIDR].unflushed == {}
    assert differences(snapshot(again), snapshot(ledger)) == []


def test_a_pod_of_an_earlier_boot_gives_way_to_whom_the_store_names() -> None:
    """A collector freed what the dead pod held, and another pod has it: there are no two holders to choose from."""
    facts: list[Fact] = [committed(5, {0: "k8s-pod-network.old"}), assigned("old", (CIDR, 0), (CIDR, 1)), Rebooted()]
    ledger = replay(NODE, POLICY, [*facts, committed(8, {0: "k8s-pod-network.next", 1: "k8s-pod-network.old"})])
    assert ledger.holdings == {}
    assert ledger.blocks[CIDR].contested == {}
    assert ledger.blocks[CIDR].adopted == {"k8s-pod-network.next": [0]}
    assert ledger.blocks[CIDR].releasing == {1: "k8s-pod-network.old"}
    assert check(ledger) == []
    assert differences(snapshot(replay(NODE, POLICY, list(ledger.checkpoint()))), snapshot(ledger)) == []


def test_a_checkpoint_keeps_the_image_of_a_block_that_another_node_took_from_under_a_pod() -> None:
    """The block is another node's and gives this one nothing; the pod that lives on in it is still flushed there."""
    taken = Committed(KEY, 6, image(CIDR, {}, affinity="host:n2"))
    ledger = replay(NODE, POLICY, [committed(5, {0: RESERVE}), assigned("a", (CIDR, 0)), taken])
    again = replay(NODE, POLICY, list(ledger.checkpoint()))
    assert again.blocks[CIDR].revision == 6
    assert differences(snapshot(again), snapshot(ledger)) == []


def test_a_checkpoint_without_images_keeps_that_of_a_block_in_which_a_pod_overrules_the_store() -> None:
    """That the other, to whom the store gives the pod's address, has given it up nothing else tells."""
    facts: list[Fact] = [committed(5, {0: RESERVE}), assigned("a", (CIDR, 0)), committed(6, {0: "k8s-pod-network.b"})]
    ledger = replay(NODE, POLICY, [*facts, Released(attachment("b"), "k8s-pod-network.b", (Place(CIDR, 0),), 7)])
    assert ledger.blocks[CIDR].overruled == {0: "k8s-pod-network.b"}
    again = replay(NODE, POLICY, list(ledger.checkpoint(images=False)))
    assert differences(snapshot(again), snapshot(ledger)) == []


def test_an_address_given_on_has_one_holder_after_a_replay() -> None:
    """A DEL that never reached the state file: who got the address afterwards has it, the deleted one nothing."""
    facts: list[Fact] = [committed(5, {0: RESERVE, 1: RESERVE}), assigned("gone", (CIDR, 0)), assigned("b", (CIDR, 0))]
    ledger = replay(NODE, POLICY, facts)
    assert list(ledger.holdings) == [attachment("b")]
    assert check(ledger) == []


def test_a_mark_of_a_del_does_not_end_a_later_holding_in_a_checkpoint() -> None:
    """Deleted, then added again: a rewritten state file keeps both the mark and the address."""
    facts: list[Fact] = [committed(5, {0: RESERVE}), Released(attachment("a"), attachment("a").handle, (), 7)]
    ledger = replay(NODE, POLICY, [*facts, assigned("a", (CIDR, 0))])
    again = replay(NODE, POLICY, list(ledger.checkpoint()))
    assert again.holdings[attachment("a")].places == (Place(CIDR, 0),)
    assert again.tombstones == {attachment("a"): 7}


def test_a_block_at_the_key_of_another_is_damaged() -> None:
    """A record copied to a wrong key is not believed: its ordinals would be other addresses."""
    value = image("10.0.0.8/29", {0: RESERVE})
    ledger = replay(NODE, POLICY, [Committed(KEY, 5, value)])
    assert ledger.damaged == {KEY: "the block at the key of 10.0.0.0/29 says that it is 10.0.0.8/29"}
    assert not ledger.blocks


def test_an_ordered_drain_is_in_the_checkpoint_until_it_is_ended() -> None:
    """One that only lasts as long as the daemon lives is not."""
    ledger = Ledger("n1", ReservePolicy())
    ledger.draining = True
    assert list(ledger.checkpoint()) == []
    ledger.apply(Draining(on=True))
    assert list(ledger.checkpoint()) == [Draining(on=True)]
    assert replay("n1", ReservePolicy(), list(ledger.checkpoint())).draining
    ledger.apply(Draining(on=False))
    assert not ledger.draining
    assert list(ledger.checkpoint()) == []


def test_marks_of_dels_are_dropped_by_age_and_number_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those too old and those of a clock that was set back go, then the first of too many; one that came again stays."""
    monkeypatch.setattr(module, "MAX_TOMBSTONES", 3)
    ledger = Ledger(NODE, POLICY)
    for name, started in (("a", 1), ("b", 2), ("c", 3 + TOMBSTONE_AGE), ("a", 4 + TOMBSTONE_AGE)):
        ledger.delete(attachment(name), "", started)
    ledger.forget_tombstones(5 + TOMBSTONE_AGE)
    assert list(ledger.tombstones.items()) == [
        (attachment("c"), 3 + TOMBSTONE_AGE), (attachment("a"), 4 + TOMBSTONE_AGE),
    ]  # fmt: skip
    for name in ("d", "e"):
        ledger.delete(attachment(name), "", 5 + TOMBSTONE_AGE)
    ledger.forget_tombstones(5 + TOMBSTONE_AGE)
    assert list(ledger.tombstones) == [attachment(name) for name in ("a", "d", "e")]
    ledger.forget_tombstones(4)
    assert not ledger.tombstones


def test_whom_the_store_names_is_found_again_after_its_image_was_told_twice() -> None:
    """An address that the store says another pod has, and a replay gives on: the other's DEL still ends its hold."""
    other = attachment("a").handle
    facts = [
        committed(6, {0: other}), assigned("a", (CIDR, 0)), committed(7, {0: other}), assigned("b", (CIDR, 0)),
    ]  # fmt: skip
    ledger = replay(NODE, POLICY, facts)
    assert ledger.blocks[CIDR].contested == {0: other}
    released = ledger.delete(attachment("a"), "", 7).facts
    assert [place for fact in released if isinstance(fact, Released) for place in fact.places] == [Place(CIDR, 0)]
    assert ledger.blocks[CIDR].contested == {}
    assert check(ledger) == []
