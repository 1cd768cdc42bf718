"""A check from its first look to what is sure: whatever looks wrong is looked at until it stands still."""

import sys
from collections.abc import Sequence

import trio
from msgspec import Struct

from ipamd.ctl import consistency, daemon_view, image
from ipamd.ctl.consistency import Finding
from ipamd.ctl.image import Image
from ipamd.ctl.output import counted
from ipamd.ctl.target import Target

LOOKS = 6
"""How often it is looked at most, while findings come and go."""
PAUSE = 1.0
"""Seconds between two looks: longer than a program takes from its first write to its last."""


class Examination(Struct, frozen=True):
    """The records, and what is wrong by two looks; ``node``: whose daemon was asked too ("": none).

    ``notes`` are what else is worth a word.
    """

    image: Image
    findings: Sequence[Finding]
    node: str
    notes: Sequence[str]


async def look(target: Target) -> Examination:
    """Look at everything, and again at what looks wrong. Raises UnreachableError, CommandError."""
    try:
        return await _look(target)
    finally:
        _say("")


async def _look(target: Target) -> Examination:
    daemon = None if target.direct else target.daemon()
    async with target.records() as records:
        seen = await image.read(records, lambda what: _say(f"reading {what} ..."))

        async def findings() -> tuple[dict[tuple[str, str, str], Finding], daemon_view.View | None]:
            view = None if daemon is None else await daemon_view.ask(daemon)
            found = [*consistency.problems(seen), *(daemon_view.problems(view, seen) if view else ())]
            return {(each.problem, each.object, each.what): each for each in found}, view

        before = dict[tuple[str, str, str], Finding]()
        now, view = await findings()
        for _ in range(1, LOOKS):
            if now.keys() <= before.keys():
                break
            _say(f"looking again at {counted(len(now), 'problem')} ...")
            await trio.sleep(PAUSE)
            concerned = {key for each in now.values() for key in each.keys} | (view.keys if view else set())
            await image.look_again(seen, records, concerned)
            before = now
            now, view = await findings()
    sure = [each for name, each in now.items() if name in before]
    notes = []
    if len(sure) < len(now):
        passing = counted(len(now) - len(sure), "problem")
        notes.append(f"not counted: {passing} that came and went while it was looked at")
    if view is not None and view.gc["problem"]:
        notes.append(f"the container runtime was not asked: {view.gc['problem']}")
    return Examination(seen, sure, view.node if view is not None else "", notes)


def _say(what: str) -> None:
    """Say on a terminal what is being done, in place of what was said before."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{what}\x1b[K")
        sys.stderr.flush()
