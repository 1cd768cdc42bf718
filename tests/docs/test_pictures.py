"""The pictures of the concepts: they are what the code does, and show what the page says of them."""

import pytest

from tests.docs import pictures


@pytest.mark.parametrize("name", pictures.STORIES)
def test_the_picture_is_up_to_date(name: str) -> None:
    """``make pages`` draws it, the same each time."""
    drawn = pictures.svg(pictures.told(name))
    assert (pictures.FOLDER / name).read_text() == drawn, f"{name} is out of date: run `make pages`"


def test_every_address_that_is_handed_out_was_in_reserve() -> None:
    """Whatever memory knows and the store does not is, in the store, in the node's reserve; until it is the pod's own."""
    seen = set()
    for step in pictures.told("reserve.svg"):
        memory, store = (row.cells for row in step.rows)
        seen |= set(memory)
        for mine, told in zip(memory, store, strict=True):
            assert mine != "unflushed" or told == "reserve", step.title
            assert mine not in ("pod", "releasing") or told == "pod", step.title
            assert mine != "reserve" or told == "reserve", step.title
    assert seen >= {"unflushed", "pod", "releasing", "reserve", "free"}


def test_a_crash_takes_nothing_back() -> None:
    """Before it and after the restart memory is the same, though the store was away all the time."""
    steps = [step.rows[0].cells for step in pictures.told("reserve.svg")]
    assert steps[3] == steps[5]
    assert set(steps[4]) == {"none"}


def test_a_node_has_whole_blocks_and_a_reserve_in_them() -> None:
    """Each block that exists is one node's; every node has addresses in reserve, also the one without a pod."""
    (step,) = pictures.told("pool.svg")
    owners = {row.label.split()[1] for row in step.rows if "reserve" in row.cells}
    assert owners == {"node-a", "node-b", "node-c"}
    assert any(set(row.cells) == {"none"} for row in step.rows)
