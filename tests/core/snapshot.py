"""What two ledgers must have in common to be called equal."""

from ipamd.core.block import Block, ordinals_of
from ipamd.core.facts import Fact
from ipamd.core.ledger import Ledger
from ipamd.core.reserve import ReservePolicy


def snapshot(ledger: Ledger) -> dict[str, object]:
    """All that a ledger promises, without what it can find out again (targets, refusals, the order of the line)."""
    return {
        "holdings": dict(ledger.holdings),
        "ranges": dict(ledger.ranges.holdings),
        "tombstones": dict(ledger.tombstones),
        "settings": dict(ledger.settings.records),
        "pools": dict(ledger.settings.pools),
        "locked": ledger.settings.locked,
        "draining": ledger.drain_ordered,
        "blocks": {
            cidr: held for cidr, block in ledger.blocks.items() if any((held := _block(block))[key] for key in _HELD)
        },
    }


_HELD = ("owned", "reserve", "withdrawn", "desired", "releasing", "adopted")
"""A block in which all of these are empty is not this node's affair."""


def _block(block: Block) -> dict[str, object]:
    holders = {
        o: None if block.record is None or not (w := block.record.owner(o)) else w.handle for o in range(block.net.size)
    }
    # What ``settle`` would settle is as good as settled: it is no fact, and a restart does it again.
    settled = {o for o, handle in block.releasing.items() if holders[o] != handle}
    back = {o for o in settled if holders[o] == block.reserve_handle and not block.withdrawn >> o & 1}
    return {
        "revision": block.revision if block.record is not None else None,
        "value": block.value,
        "owned": block.owned,
        "reserve": set(ordinals_of(block.reserve_bits | block.kept_bits)) | back,
        "withdrawn": block.withdrawn,
        "desired": dict(block.desired),
        "unflushed": dict(block.unflushed),
        "contested": dict(block.contested),
        "releasing": {o: handle for o, handle in block.releasing.items() if o not in settled},
        "adopted": {handle: sorted(ordinals) for handle, ordinals in block.adopted.items()},
    }


def replay(node: str, policy: ReservePolicy, facts: list[Fact]) -> Ledger:
    """A fresh ledger after these facts, as a daemon that was started with them."""
    ledger = Ledger(node, policy)
    for fact in facts:
        ledger.apply(fact)
    return ledger


def differences(one: object, other: object, path: str = "") -> list[str]:
    """Where two snapshots differ, a line each."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in sorted(one.keys() | other.keys(), key=str):
            found += differences(one.get(key), other.get(key), f"{path}/{key}")
        return found
    return [] if one == other else [f"{path}: {one!r} is not {other!r}"]
