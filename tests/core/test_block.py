"""One block: which ordinals may be handed out, in which order, and what a new committed image changes."""

from hypothesis import given
from hypothesis import strategies as st

from ipamd.core.block import Block, ordinals_of
from tests.core.blocks import NODE, RESERVE, assigned, block, image, merge

CIDR = "10.0.0.0/29"


def reserved(*ordinals: int) -> dict[int, str]:
    """These ordinals in our reserve, in this order."""
    return dict.fromkeys(ordinals, RESERVE)


def give(target: Block, ordinal: int, container: str = "a") -> None:
    """Let a container hold an ordinal."""
    target.assign(ordinal, assigned(container, (CIDR, ordinal)))


def test_only_what_the_store_gives_our_reserve_is_available() -> None:
    """Free ordinals, other handles' and those of another node's reserve are not handed out."""
    target = block(CIDR, {1: RESERVE, 2: "k8s-pod-network.x", 3: "ipamd-reserve-n2", 5: RESERVE})
    assert target.available == 2
    assert target.line() == [1, 5]
    assert ordinals_of(target.unreserved_bits) == [0, 4, 6, 7]


def test_the_line_is_in_the_order_of_reservation() -> None:
    """After a restart the ordinal that was reserved first is handed out first, whatever its number."""
    assert block(CIDR, reserved(5, 1, 3)).line() == [5, 1, 3]


def test_the_head_is_not_taken_by_looking() -> None:
    """Asking for the next ordinal twice gives the same one; assigning it moves on."""
    target = block(CIDR, reserved(0, 1))
    assert target.head() == target.head() == 0
    give(target, 0)
    assert target.head() == 1
    give(target, 1, "b")
    assert target.head() is None
    assert target.available == 0


def test_what_was_just_given_up_is_handed_out_last() -> None:
    """An ordinal that comes back waits behind all that were there: an address rests as long as can be."""
    target = block(CIDR, reserved(0, 1, 2))
    give(target, 0)
    target.release(0, "k8s-pod-network.a")
    assert target.settle()
    assert target.line() == [1, 2, 0]
    assert target.head() == 1


def test_what_was_flushed_freed_and_reserved_again_is_handed_out_last() -> None:
    """The same after a round through the store."""
    target = block(CIDR, reserved(0, 1, 2))
    give(target, 0)
    merge(target, {0: "k8s-pod-network.a", **reserved(1, 2)}, 2)
    target.release(0, "k8s-pod-network.a")
    merge(target, reserved(1, 2), 3)
    merge(target, reserved(1, 2, 0), 4)
    assert target.line() == [1, 2, 0]


def test_what_was_withdrawn_and_reserved_again_is_handed_out_last() -> None:
    """An ordinal that left the reserve from the middle of the line comes back at its end."""
    target = block(CIDR, reserved(0, 1, 2))
    target.withdraw([1])
    merge(target, reserved(0, 2), 2)
    merge(target, reserved(0, 2, 1), 3)
    assert target.line() == [0, 2, 1]


def test_a_release_before_the_flush_is_settled_without_a_write() -> None:
    """An ordinal given up before the store heard of its pod goes back into the reserve, but not before ``settle``."""
    target = block(CIDR, reserved(0))
    give(target, 0)
    target.release(0, "k8s-pod-network.a")
    assert (target.available, target.releasing) == (0, {0: "k8s-pod-network.a"})
    assert target.settle()
    assert not target.settle()
    assert (target.available, target.dirty) == (1, False)


def test_what_a_transaction_in_doubt_leaves_in_the_reserve_comes_back_at_once() -> None:
    """What it may give to a pod does not, until a new image has overtaken it."""
    target = block(CIDR, reserved(0, 1))
    give(target, 0)
    target.doubt()
    give(target, 1, "b")
    target.release(0, "k8s-pod-network.a")
    target.release(1, "k8s-pod-network.b")
    assert target.settle()
    assert (target.line(), target.releasing) == ([1], {0: "k8s-pod-network.a"})
    merge(target, reserved(0, 1, 2), 2)
    assert target.settle()
    assert set(target.line()) == {0, 1, 2}


def test_each_transaction_in_doubt_adds_to_what_does_not_come_back() -> None:
    """A second one that was made from the same image, and may give another address to a pod."""
    target = block(CIDR, reserved(0, 1, 2))
    for ordinal, container in enumerate("ab"):
        give(target, ordinal, container)
        target.doubt()
    give(target, 2, "c")
    for ordinal, container in enumerate("abc"):
        target.release(ordinal, f"k8s-pod-network.{container}")
    assert target.settle()
    assert target.line() == [2]


def test_a_release_waits_for_the_store() -> None:
    """An ordinal that the store gives to the pod is nobody's until the store has freed it."""
    target = block(CIDR, {0: "k8s-pod-network.a"})
    target.release(0, "k8s-pod-network.a")
    assert not target.settle()
    assert target.dirty
    merge(target, {}, 2)
    assert (target.dirty, target.releasing) == (False, {})


def test_a_release_under_way_is_not_the_workloads_again() -> None:
    """A new image that still has the released pod does not make it this node's workload again."""
    target = block(CIDR, {0: "k8s-pod-network.a"})
    assert target.adopted == {"k8s-pod-network.a": [0]}
    target.release(0, "k8s-pod-network.a")
    merge(target, {0: "k8s-pod-network.a", 1: RESERVE}, 2)
    assert target.adopted == {}
    assert target.releasing == {0: "k8s-pod-network.a"}


def test_a_release_by_another_handle_changes_nothing() -> None:
    """Only the handle that holds an ordinal can give it up."""
    target = block(CIDR, reserved(0))
    give(target, 0)
    target.release(0, "k8s-pod-network.b")
    assert 0 in target.desired
    assert not target.releasing


def test_a_release_while_its_write_is_under_way_is_not_forgotten() -> None:
    """A pod whose address an operator freed, written again and deleted meanwhile: freed when the write is known."""
    target = block(CIDR, {0: "k8s-pod-network.a"})
    give(target, 0)
    merge(target, {}, 2)
    assert 0 in target.unflushed
    # a transaction that gives 0 to the pod again is on its way
    target.release(0, "k8s-pod-network.a")
    merge(target, {0: "k8s-pod-network.a"}, 3)
    assert target.adopted == {}
    assert target.releasing == {0: "k8s-pod-network.a"}


def test_a_withdrawn_ordinal_never_comes_back_by_itself() -> None:
    """From the fact on an ordinal is not handed out, whatever images come, until the store has taken it back."""
    target = block(CIDR, reserved(0, 1))
    target.withdraw([0])
    assert target.line() == [1]
    merge(target, reserved(0, 1), 2)
    assert target.line() == [1]
    merge(target, reserved(1), 3)
    assert not target.dirty
    merge(target, reserved(0, 1), 4)
    assert target.line() == [1, 0]


def test_only_reserved_ordinals_are_withdrawn() -> None:
    """Withdrawing what the store does not give to the reserve means nothing."""
    target = block(CIDR, {0: "k8s-pod-network.a"})
    target.withdraw([0, 1])
    assert not target.dirty


def test_a_released_and_withdrawn_ordinal_is_not_settled() -> None:
    """An ordinal that is to be given back does not return to the reserve by a release."""
    target = block(CIDR, reserved(0))
    target.withdraw([0])
    target.releasing[0] = "k8s-pod-network.a"
    assert not target.settle()
    assert target.available == 0


def test_an_assignment_becomes_flushed_when_the_store_says_so() -> None:
    """Until the image has the pod's handle the assignment is unflushed; then the block is clean."""
    target = block(CIDR, reserved(0, 1))
    give(target, 0)
    assert target.dirty
    merge(target, {0: "k8s-pod-network.a", 1: RESERVE}, 2)
    assert not target.dirty
    assert target.line() == [1]


def test_an_ordinal_held_here_is_not_available_whatever_the_image_says() -> None:
    """An image from before the assignment's flush does not bring the ordinal back into the reserve."""
    target = block(CIDR, reserved(0, 1))
    give(target, 0)
    merge(target, reserved(0, 1, 2), 2)
    assert target.line() == [1, 2]
    assert target.unflushed.keys() == {0}


def test_an_ordinal_taken_out_of_the_reserve_by_another_is_gone() -> None:
    """An operator frees a reserved ordinal, Calico's plugin takes another: neither is handed out any more."""
    target = block(CIDR, reserved(0, 1, 2))
    merge(target, {1: "k8s-pod-network.theirs", 2: RESERVE}, 2)
    assert target.line() == [2]
    assert target.adopted == {"k8s-pod-network.theirs": [1]}


def test_a_pods_ordinal_freed_by_an_operator_is_written_again() -> None:
    """The living pod's allocation is unflushed again, and not in the reserve."""
    target = block(CIDR, {0: "k8s-pod-network.a"})
    give(target, 0)
    assert not target.dirty
    merge(target, {}, 2)
    assert target.unflushed.keys() == {0}
    merge(target, reserved(0), 3)
    assert target.unflushed.keys() == {0}
    assert target.available == 0


def test_a_pods_ordinal_given_to_another_is_contested_and_never_overwritten() -> None:
    """Two pods claim one ordinal: it is reported, not taken from the one that the store has; when free, it is ours."""
    target = block(CIDR, {0: "k8s-pod-network.a"})
    give(target, 0)
    merge(target, {0: "k8s-pod-network.other"}, 2, node="n2")
    assert target.contested == {0: "k8s-pod-network.other"}
    assert not target.dirty
    merge(target, {}, 3)
    assert target.contested == {}
    assert target.unflushed.keys() == {0}


def test_a_contested_ordinal_given_up_leaves_the_others_allocation() -> None:
    """A DEL of the pod that lost does not free the other's address."""
    target = block(CIDR, {0: "k8s-pod-network.a"})
    give(target, 0)
    merge(target, {0: "k8s-pod-network.other"}, 2, node="n2")
    target.release(0, "k8s-pod-network.a")
    assert not target.dirty
    assert not target.contested


def test_a_contested_ordinal_given_up_may_be_another_plugins_pods_here() -> None:
    """Whose it is in the store can be deleted through this node from then on, without waiting for another image."""
    target = block(CIDR, reserved(0))
    give(target, 0)
    merge(target, {0: "k8s-pod-network.other"}, 2)
    target.release(0, "k8s-pod-network.a")
    assert target.adopted == {"k8s-pod-network.other": [0]}


def test_a_contested_ordinal_is_ours_again_when_the_other_is_known_to_be_gone() -> None:
    """What the other gave up is to be overwritten, also when somebody writes the block once more before that."""
    target = block(CIDR, {0: "k8s-pod-network.a"})
    give(target, 0)
    merge(target, {0: "k8s-pod-network.other"}, 2)
    assert target.under("k8s-pod-network.other") == [0]
    target.release(0, "k8s-pod-network.other")
    assert (target.contested, target.unflushed.keys()) == ({}, {0})
    merge(target, {0: "k8s-pod-network.other", 5: "k8s-pod-network.far"}, 3)
    assert (target.contested, target.unflushed.keys()) == ({}, {0})
    assert target.overruled == {0: "k8s-pod-network.other"}
    merge(target, {0: "k8s-pod-network.a"}, 4)
    assert not target.dirty
    merge(target, {0: "k8s-pod-network.other"}, 5)
    assert target.contested == {0: "k8s-pod-network.other"}, "it was not the same any more"


def test_only_a_workload_of_this_node_can_be_gone() -> None:
    """A contested ordinal that another node's pod has by the store is not under that pod's handle here."""
    target = block(CIDR, {0: "k8s-pod-network.a"})
    give(target, 0)
    merge(target, {0: "k8s-pod-network.other"}, 2, node="n2")
    assert target.under("k8s-pod-network.other") == []


def test_a_block_that_vanished_beneath_its_pods_is_theirs_still() -> None:
    """Without an image nothing can be handed out, and all that pods hold is to be written again."""
    target = block(CIDR, {0: "k8s-pod-network.a", 1: RESERVE})
    give(target, 0)
    target.merge(None, b"", 2)
    assert target.available == 0
    assert target.unflushed.keys() == {0}
    assert target.relevant
    target.release(0, "k8s-pod-network.a")
    merge(target, reserved(0), 3)
    assert target.releasing.keys() <= {0}
    target.settle()
    assert target.line() == [0]


def test_a_tunnel_address_is_not_a_workload() -> None:
    """What the node agent takes from the block is neither adopted nor handed out."""
    value = image(CIDR, {0: "vxlan-tunnel-addr-n1"}).replace(
        b'{"node":"n1"}', b'{"node":"n1","type":"vxlanTunnelAddress"}'
    )
    target = Block(CIDR, NODE, RESERVE)
    from ipamd.core.records import BlockRecord

    target.merge(BlockRecord(value), value, 1)
    assert not target.adopted
    assert target.available == 0
    assert not target.empty


def test_a_borrowed_ordinal_is_the_borrowers() -> None:
    """An ordinal of our block that another node's pod holds is not this node's workload."""
    target = Block(CIDR, NODE, RESERVE)
    merge(target, {0: "k8s-pod-network.far", 1: RESERVE}, 1, node="n2")
    assert not target.adopted
    assert not target.empty
    assert target.line() == [1]


def test_a_block_with_nothing_but_reserve_is_empty() -> None:
    """Empty means: nobody but the reserve holds an ordinal, in the store or by our wish."""
    target = block(CIDR, reserved(0, 1))
    assert target.empty
    give(target, 0)
    assert not target.empty
    target.release(0, "k8s-pod-network.a")
    assert not target.empty
    target.settle()
    assert target.empty


class Dumb:
    """A block as a list in which the first free one is the next: the order that the real one must keep."""

    def __init__(self, line: list[int]) -> None:
        self.line = line
        self.held: dict[int, str] = {}
        self.back: list[int] = []


@given(
    st.lists(st.tuples(st.sampled_from(["add", "del", "settle", "withdraw", "merge"]), st.integers(0, 7)), max_size=60)
)
def test_the_bitmap_and_the_line_always_agree(history: list[tuple[str, int]]) -> None:
    """After any history the line names each available ordinal once, in the order in which they became available."""
    target, dumb = block(CIDR, reserved(0, 1, 2, 3)), Dumb([0, 1, 2, 3])
    stored: dict[int, str] = reserved(0, 1, 2, 3)
    for revision, (kind, number) in enumerate(history, 2):
        if kind == "add" and dumb.line:
            ordinal = target.head()
            assert ordinal == dumb.line.pop(0)
            dumb.held[ordinal] = f"k8s-pod-network.c{revision}"
            target.assign(ordinal, assigned(f"c{revision}", (CIDR, ordinal)))
        elif kind == "del" and number in dumb.held:
            target.release(number, dumb.held.pop(number))
            dumb.back.append(number)
        elif kind == "settle":
            target.settle()
            dumb.line += dumb.back
            dumb.back = []
        elif kind == "withdraw" and number in dumb.line:
            target.withdraw([number])
            dumb.line.remove(number)
            del stored[number]
            merge(target, stored, revision)
        elif kind == "merge" and number not in stored:
            stored[number] = RESERVE
            dumb.line.append(number)
            merge(target, stored, revision)
        assert target.line() == dumb.line
        assert ordinals_of(target.reserve_bits) == sorted(dumb.line)
