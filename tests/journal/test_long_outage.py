"""An outage that goes on and on, while pods come and go by the million: the state file stays small, and what is remembered."""

import os
import sys
from contextlib import closing
from pathlib import Path

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.clock import Now
from ipamd.core.facts import Committed
from ipamd.core.ledger import MAX_TOMBSTONES, Ledger
from ipamd.core.request import Added, AddRequest
from ipamd.core.reserve import ReservePolicy
from ipamd.journal.journal import Journal
from tests.core.blocks import NODE, RESERVE, attachment, image
from tests.core.snapshot import differences, snapshot
from tests.journal.examples import BOOT
from tests.nodes import pool_record

PAIRS = int(os.environ.get("IPAMD_TEST_PAIRS", "120000"))
"""ADDs and DELs."""
PAUSE = 100_000
"""Nanoseconds from one pair to the next: 10,000 pairs a second, more than a daemon can take."""
FILE = 48 << 20
"""Bytes that it may have."""


async def test_pods_that_come_and_go_while_the_store_is_away(tmp_path: Path) -> None:
    """ADDs get what is in reserve; all DELs are written down, but not kept for ever; a restart finds the same."""
    journal, _, _ = Journal.open(tmp_path, NODE, BOOT)
    ledger = Ledger(NODE, ReservePolicy())
    ledger.synced = True
    facts = [
        Committed(key, 1, value)
        for key, value in (
            pool_record("p", "10.0.0.0/26"),
            (keys.block_key(parse_cidr("10.0.0.0/26")), image("10.0.0.0/26", dict.fromkeys(range(64), RESERVE))),
        )
    ]
    for fact in facts:
        ledger.apply(fact)
    journal.append(facts)
    served, largest = 0, 0
    with closing(journal):
        for number in range(PAIRS):
            now = Now(number * PAUSE, number * PAUSE)
            who = attachment(f"container-{number}")
            if ledger.available("p"):
                added = ledger.add(AddRequest(who, (4,), {"pod": f"pod-{number}"}, now.boot), now)
                assert isinstance(added, Added)
                journal.append(added.facts)
                served += 1
            journal.append(ledger.delete(who, f"default.pod-{number}", now.boot).facts)
            if number % 10_000 == 0:  # once a second
                largest = max(largest, journal.size)
                ledger.forget_tombstones(now.boot)
                if journal.should_checkpoint:
                    await journal.checkpoint(ledger.checkpoint())
        ledger.forget_tombstones(now.boot)
        await journal.checkpoint(ledger.checkpoint())
    sys.stdout.write(
        f"{PAIRS} pairs: {largest >> 20} MiB of state file at most, {len(ledger.tombstones)} DELs remembered\n"
    )
    assert served == 64
    assert largest < FILE
    assert len(ledger.tombstones) == MAX_TOMBSTONES
    assert attachment(f"container-{PAIRS - 1}") in ledger.tombstones
    journal, found, _ = Journal.open(tmp_path, NODE, BOOT)
    journal.close()
    again = Ledger(NODE, ReservePolicy())
    again.replay(found)
    assert differences(snapshot(ledger), snapshot(again)) == []
