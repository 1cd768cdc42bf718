"""Calico's page "Migrate from one IP pool to another": the captured steps of calicoctl replayed, from pool to pool and back."""

from typing import Any

import pytest

from tests.ctl.places import Ctl, capture

IN_USE = {
    "migrate-midway": ("old2", "192.168.218.64"),
    "migrate-done": (),
}
"""By capture, what of the records as they were in its middle is there when its first pool is deleted."""


def steps(history: str) -> list[dict[str, Any]]:
    """The pools' steps: who came and went between them is in the records that are loaded."""
    captured: list[dict[str, Any]] = capture(history)["steps"]  # type: ignore[assignment]
    return [step for step in captured if step.get("argv", [""] * 2)[1] in ("apply", "create", "patch", "delete", "get")]


@pytest.mark.parametrize("history", IN_USE)
def test_as_calico_does(ctl: Ctl, history: str) -> None:
    """The same verdicts in the same order, Calico's words for each success, and the same table of pools at each look."""
    middle: dict[str, str] = capture("migrate-midway")["etcd"]  # type: ignore[assignment]
    pods = [key for key in middle if "/ipam/v2/" in key]
    if history == "migrate-done":
        ctl.load({key: value for key, value in middle.items() if key not in pods})
    for step in steps(history):
        if step["argv"][1] == "delete":
            ctl.load({key: middle[key] for key in pods if key.split("/")[-1].split("-26")[0].endswith(IN_USE[history])})
        done = ctl.run(*step["argv"][1:], stdin=step["stdin"] or "")
        assert (done.code, done.out) == (step["exit"], step["stdout"]), done.err
    pools = {key for key in ctl.place.all() if "/ippools/" in key}
    assert pools == {key for key in capture(history)["etcd"] if "/ippools/" in key}  # type: ignore[attr-defined]
