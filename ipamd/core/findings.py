"""Findings: what an administrator should look at, since no program can put it right by itself."""

from collections.abc import Iterator

from ipamd.core import requested
from ipamd.core.ledger import Ledger


def findings(ledger: Ledger, quarantine: float) -> set[str]:
    """What is wrong with the records, a sentence each; ``quarantine`` is how long a lost reserve is kept back (s)."""
    found = {f"record {key}: {why}" for key, why in ledger.damaged.items()}
    pools = ledger.settings.pools.values()
    found |= {f"pool {pool.name}: {pool.unreadable}" for pool in pools if pool.unreadable}
    for block in ledger.blocks.values():
        for ordinal in block.contested:
            owner = None if block.record is None else block.record.owner(ordinal)
            if owner is not None:
                ours, theirs = requested.tenant(block.desired[ordinal]), requested.stranger(owner)
                found.add(
                    f"address {block.address(ordinal)} has two holders: {ours}, and according to the store "
                    f"{theirs}; delete one of the two pods"
                )
    found.update(_quarantined(ledger, quarantine))
    return found


def _quarantined(ledger: Ledger, quarantine: float) -> Iterator[str]:
    for handle, reserve in ledger.quarantine.items():
        yield (
            f"{len(reserve.places)} addresses: in reserve for this node under {handle}, which this state file "
            "knows nothing of: another was lost, or another host has this node's name; nobody gets them for "
            f"{quarantine:g} s, then they are free"
        )
