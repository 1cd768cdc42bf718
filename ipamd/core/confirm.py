"""CHECK: whether an attachment still has the addresses that it was answered with."""

from collections.abc import Set

from ipamd.core.address import format_address, parse_address
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Attachment
from ipamd.core.ledger import Ledger


def confirm(ledger: Ledger, attachment: Attachment, previous: Set[tuple[int, int]] | None) -> None:
    """Raise RefusedError unless the attachment has addresses here, all of them among the ``previous``.

    An address is an IP version and an integer. None: the call came without a result, as only people make it; a runtime
    always sends one. There may be more previous ones, of other plugins of the chain. What
    another plugin gave the container before this daemon came counts: it is under the container's handle in the store.
    """
    cannot = f"cannot confirm the address of container {attachment.container}"
    held = ledger.holdings.get(attachment)
    under = [p for fact in ledger.unclaimed(attachment, [attachment.handle], 0) for p in fact.places]
    places = held.places if held else [p for p in under if p.ordinal not in ledger.blocks[p.block].contested]
    ranged = ledger.ranges.holdings.get(attachment)
    if not places and ranged is None:
        raise RefusedError(
            Code.CONTAINER_UNKNOWN, f"{cannot}: this node has assigned none to it; delete and recreate the pod"
        )
    addresses = {parse_address(text) for text in ranged.addresses} if ranged else set()
    for place in places:
        block = ledger.blocks[place.block]
        addresses.add((block.net.family, block.net.base + place.ordinal))
        if place.ordinal in block.contested:
            raise RefusedError(
                Code.MISMATCH,
                f"{cannot}: the store says that handle {block.contested[place.ordinal]} has "
                f"{block.address(place.ordinal)}; delete and recreate the pod",
            )
    if previous is None:
        return
    # What only the store knows is the container's: it may have another interface's addresses as well.
    fits = addresses <= previous if held or ranged else bool(addresses & previous)
    if not fits:
        raise RefusedError(
            Code.MISMATCH,
            f"{cannot}: it has {_listed(addresses)} here, and {_listed(previous) or 'none'} in prevResult; "
            "delete and recreate the pod",
        )


def _listed(addresses: Set[tuple[int, int]]) -> str:
    return ", ".join(format_address(family, value) for family, value in sorted(addresses))
