"""Cooldown: a released address is nobody's until it has cooled, by whichever clock, and is then free again."""

import json

import pytest
from msgspec import Raw

from ipamd.core import keys
from ipamd.core.block import Block, ordinals_of
from ipamd.core.clock import Now
from ipamd.core.records import BlockRecord, attribute, cooling_attribute, go_json, rfc3339
from tests.core.blocks import RESERVE, assigned
from tests.core.blocks import block as block_with
from tests.core.captured import captured

SECOND = 1_000_000_000
RELEASED = 1_795_218_475 * SECOND
CIDR = "10.40.0.232/30"
MINUTE = 60 * SECOND


def now(seconds: float, boot: float | None = None) -> Now:
    """So long after the release by the wall's clock; ``boot`` by the other, if that went differently."""
    return Now(RELEASED + int(seconds * SECOND), int((seconds if boot is None else boot) * SECOND))


def cooling(*ordinals: int, at: str = rfc3339(RELEASED), held: int | None = None) -> Block:
    """A block of this node whose ordinals were released at a time, by whomever; ``held``: one that our pod holds."""
    target = block_with(CIDR, dict.fromkeys(range(4), RESERVE))
    if held is not None:
        target.assign(held, assigned("pod", (CIDR, held)))
    assert target.record is not None
    record = BlockRecord(target.record.encode())
    for ordinal in ordinals:
        record.cool(ordinal, attribute_at(at))
    value = record.encode()
    target.merge(BlockRecord(value), value, 2)
    return target


def attribute_at(text: str) -> Raw:
    """The attribute of an address released at this time, in whatever form."""
    return Raw(go_json({"releasedAt": text}))


# --- records --------------------------------------------------------------------------------------------------


def test_a_released_address_is_written_as_calico_does() -> None:
    """Taken from its pod, an address keeps place and sequence number, out of unallocated, with a time for an owner."""
    (after,) = [value for _name, _key, value in captured(keys.Kind.BLOCK) if b"releasedAt" in value]
    shape = json.loads(after)
    before = BlockRecord(after)
    for ordinal in (1, 2):
        pod = {"namespace": "default", "node": "node-a", "pod": f"pod-m{ordinal}"}
        before.give(ordinal, attribute(f"k8s-pod-network.m{ordinal}", pod))
    before.sequences = shape["sequenceNumberForAllocation"]
    record = BlockRecord(before.encode())
    record.cool(1, cooling_attribute(RELEASED))
    record.cool(2, cooling_attribute(RELEASED + SECOND))
    record.sequence = shape["sequenceNumber"] - 1
    written = json.loads(record.encode())
    owners = [written["attributes"][index] for index in written["allocations"]]
    assert owners == [shape["attributes"][index] for index in shape["allocations"]]
    for field in ("unallocated", "sequenceNumber", "sequenceNumberForAllocation"):
        assert written[field] == shape[field]
    assert len(written["attributes"]) == 4


def test_addresses_released_in_one_second_share_an_attribute() -> None:
    """Equal attributes are one entry, as everywhere."""
    record = BlockRecord(block_with(CIDR, {0: "a", 1: "b", 2: "c"}).value)
    for ordinal in (0, 1, 2):
        record.cool(ordinal, cooling_attribute(RELEASED + ordinal))
    assert json.loads(record.encode())["attributes"] == [{"releasedAt": "2026-11-20T23:47:55Z"}]


def test_a_handle_that_says_when_it_was_released_is_still_a_holder() -> None:
    """Only an attribute without a handle is cooling: what somebody holds is never taken for nobody's."""
    record = BlockRecord(block_with(CIDR, {0: "a"}).value)
    record.give(0, Raw(go_json({"handle_id": "k8s-pod-network.x", "releasedAt": rfc3339(RELEASED)})))
    value = record.encode()
    target = block_with(CIDR, {})
    target.merge(BlockRecord(value), value, 2)
    assert target.cooling == {}
    assert list(target.adopted) == ["k8s-pod-network.x"]


# --- a block --------------------------------------------------------------------------------------------------


def test_a_cooling_address_is_nobodys() -> None:
    """Not in reserve, not free, not a pod's of this node: it cannot be handed out, released or adopted."""
    target = cooling(0, 1)
    assert target.cooling == {0: rfc3339(RELEASED), 1: rfc3339(RELEASED)}
    assert target.line() == [2, 3]
    assert target.unreserved_bits == 0
    assert target.adopted == target.contested == target.releasing == {}


def test_a_release_is_done_when_the_store_shows_the_address_cooling() -> None:
    """The pod's DEL asks for nothing more once its address cools."""
    target = block_with(CIDR, {0: "k8s-pod-network.a"})
    target.release(0, "k8s-pod-network.a")
    assert target.record is not None
    record = BlockRecord(target.value)
    record.cool(0, cooling_attribute(RELEASED))
    value = record.encode()
    target.merge(BlockRecord(value), value, 2)
    assert not target.dirty
    assert target.line() == []


def test_a_living_pods_address_that_somebody_released_is_taken_back() -> None:
    """An operator's hand let it cool: the pod still uses it, so nobody else's claim stands against it."""
    target = cooling(0, held=0)
    assert target.contested == {}
    assert list(target.unflushed) == [0]
    target.note_cooled(now(3600), MINUTE)
    assert target.cooled == 0, "what a pod uses is not free, however long ago it was released"


def test_what_the_store_never_heard_of_goes_back_only_without_a_cooldown() -> None:
    """A pod that came and went between two flushes used its address too."""
    target = block_with(CIDR, {0: RESERVE})
    target.assign(0, assigned("a", (CIDR, 0)))
    target.release(0, "k8s-pod-network.a")
    assert not target.settle(cooldown=True)
    assert (target.available, target.dirty) == (0, True)
    assert target.settle(cooldown=False), "the cooldown was turned off meanwhile"
    assert target.line() == [0]


# --- clocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "later", "cooled"),
    [
        ((30, 30), (60, 60), False),  # the text has whole seconds: it may have been released at the end of this one
        ((30, 30), (61, 61), True),
        ((0, 0), (60, 60), True),  # seen from its beginning
        ((61, 0), (61, 0), True),  # first seen when it was over
        ((1, 0), (3600, 59), False),  # the wall's clock jumped ahead: it cools no shorter
        ((1, 0), (-3600, 60), True),  # it jumped back: no longer
        ((-86400, 0), (-86400, 59), False),  # released in the future, says our clock
        ((-86400, 0), (-86400, 60), True),  # not for ever
    ],
)
def test_how_long_an_address_cools(first: tuple[int, int], later: tuple[int, int], *, cooled: bool) -> None:
    """From the release as it looked at first sight, by the clock that never jumps, and a cooldown at the longest.

    The pairs are seconds after the release by the wall's clock, and by the other.
    """
    target = cooling(1)
    target.note_cooled(now(*first), MINUTE)
    target.note_cooled(now(*later), MINUTE)
    assert ordinals_of(target.cooled) == ([1] if cooled else [])


@pytest.mark.parametrize("text", ["", "never", "2026-11-20", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59+99:99"])
def test_a_release_at_no_sensible_time(text: str) -> None:
    """A text that is no time counts from when it was first seen; one without any text is an owner without a handle."""
    target = cooling(1, at=text)
    target.note_cooled(now(0), MINUTE)
    target.note_cooled(now(61), MINUTE)
    assert ordinals_of(target.cooled) == ([1] if text else [])


def test_an_address_that_cools_again_begins_anew() -> None:
    """Freed, given to another pod and released again: the earlier release does not count."""
    target = cooling(1)
    target.note_cooled(now(61), MINUTE)
    assert target.cooled
    assert target.record is not None
    record = BlockRecord(target.value)
    record.cool(1, cooling_attribute(RELEASED + 62 * SECOND))
    value = record.encode()
    target.merge(BlockRecord(value), value, 3)
    assert target.cooled == 0
    target.note_cooled(now(63), MINUTE)
    assert target.cooled == 0


def test_a_block_in_which_something_cools_is_not_empty() -> None:
    """It is not given back while an address cools: whoever claimed it could hand that out at once."""
    target = cooling(1)
    target.note_cooled(now(30), MINUTE)
    assert not target.empty
    target.note_cooled(now(61), MINUTE)
    assert target.empty
