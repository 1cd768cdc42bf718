"""How the target of a reserve follows what happens, by times that are given to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipamd.core.reserve import GROWTH_PAUSE, Reserve, ReservePolicy

POLICY = ReservePolicy(minimum=16, maximum=256, decay=30_000_000_000)
STEP = POLICY.decay
AFTER = GROWTH_PAUSE


def grown(times: int) -> Reserve:
    """A reserve after so many doublings."""
    reserve = Reserve(POLICY, 0)
    for step in range(times):
        reserve.grow((step + 1) * AFTER)
    return reserve


def test_at_rest_the_target_is_the_minimum() -> None:
    """A new reserve wants as many addresses as the operator said."""
    assert Reserve(POLICY, 0).target == 16


def test_each_waiting_add_is_wanted_on_top() -> None:
    """The target counts one address for each ADD that waits, beside the level."""
    reserve = Reserve(POLICY, 0)
    reserve.waiting = 5
    assert (reserve.level, reserve.target) == (16, 21)


@pytest.mark.parametrize(("left", "level"), [(4, 16), (3, 32), (0, 32)])
def test_a_reserve_that_is_drained_below_a_quarter_doubles(left: int, level: int) -> None:
    """With less than a quarter of the level left the level doubles; with a quarter it stays."""
    reserve = Reserve(POLICY, 0)
    reserve.drained(left, AFTER)
    assert reserve.level == level


def test_growth_ends_at_the_maximum() -> None:
    """However long a burst lasts, the level does not exceed the operator's maximum."""
    assert [grown(times).level for times in range(7)] == [16, 32, 64, 128, 256, 256, 256]


def test_a_maximum_below_the_minimum_does_not_shrink_the_level() -> None:
    """A policy with a maximum under the minimum keeps the minimum."""
    reserve = Reserve(ReservePolicy(16, 4), 0)
    reserve.grow(AFTER)
    assert reserve.level == 16


def test_one_burst_doubles_once_until_it_had_effect() -> None:
    """Two doublings are as far apart as a transaction takes; the first one comes at once."""
    reserve = Reserve(POLICY, 0)
    for now in (0, 1, AFTER - 1):
        reserve.grow(now)
        assert reserve.level == 32
    reserve.grow(AFTER)
    assert reserve.level == 64


def test_a_grown_level_shrinks_by_a_quarter_each_decay() -> None:
    """Without new bursts the level loses a quarter a step, and ends at the minimum."""
    reserve = grown(4)
    start = 4 * AFTER
    reserve.decay(start + STEP - 1)
    assert reserve.level == 256
    levels = []
    for step in range(1, 12):
        reserve.decay(start + step * STEP)
        levels.append(reserve.level)
    assert levels == [192, 144, 108, 81, 61, 46, 35, 27, 21, 16, 16]


def test_decay_after_a_long_pause_is_that_of_all_its_steps() -> None:
    """A reserve that was not looked at for a while is as small as one that was looked at often."""
    often, once = grown(4), grown(4)
    for now in range(0, 5 * STEP, STEP // 3):
        often.decay(now)
    once.decay(5 * STEP - 1)
    often.decay(5 * STEP - 1)
    assert often.level == once.level == 81


def test_growth_starts_the_decay_anew() -> None:
    """A burst in the middle of the decay counts from then on."""
    reserve = grown(4)
    reserve.decay(4 * AFTER + STEP)
    reserve.grow(4 * AFTER + STEP + STEP // 2)
    reserve.decay(4 * AFTER + 2 * STEP)
    assert reserve.level == 256


@pytest.mark.parametrize(("available", "surplus"), [(0, 0), (16, 0), (31, 0), (32, 0), (33, 17), (64, 48)])
def test_surplus_goes_back_only_above_twice_the_target(available: int, surplus: int) -> None:
    """Between the target and twice it nothing is given back; above, all but the target is."""
    assert Reserve(POLICY, 0).surplus(available) == surplus


def test_what_is_left_after_giving_back_is_no_surplus() -> None:
    """Hysteresis: giving back never leads to taking again, nor to giving more."""
    reserve = Reserve(POLICY, 0)
    for available in range(200):
        left = available - reserve.surplus(available)
        assert reserve.surplus(left) == 0
        assert left >= min(available, reserve.target)


@given(st.lists(st.tuples(st.sampled_from(["grow", "drain", "decay"]), st.integers(0, 10**11), st.integers(0, 300))))
def test_the_level_stays_between_minimum_and_maximum(history: list[tuple[str, int, int]]) -> None:
    """Whatever happens and whenever, the level is one that the policy allows."""
    reserve, now = Reserve(POLICY, 0), 0
    for kind, pause, available in history:
        now += pause
        if kind == "grow":
            reserve.grow(now)
        elif kind == "drain":
            reserve.drained(available, now)
        else:
            reserve.decay(now)
        assert POLICY.minimum <= reserve.level <= POLICY.maximum
