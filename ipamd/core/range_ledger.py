"""What this node has given out of host-local ranges: decisions and facts, beside those about pools.

As in host-local each network is an address space of its own: the same address may be held in two networks. Nothing here
is in the store; the state file is the truth. The promises are those of ``core.ledger``, which delegates to this.
"""

from collections.abc import Iterator

from msgspec.structs import replace

from ipamd.core.address import format_address
from ipamd.core.clock import Now
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Attachment, RangeAssigned, RangeCursors, RangeReleased
from ipamd.core.ranges import Address, RangeSet, find, read_address, stretches
from ipamd.core.request import RangeAdded, RangeRequest

_CHUNK_BITS = 12
"""Addresses in use are bits of integers of 4,096: a full one is passed in one step, a mostly empty one costs little."""


class Network:
    """One network: who holds an address, and of each range set (by its position) the address last given out."""

    def __init__(self) -> None:
        self.holders: dict[Address, Attachment] = {}
        self.cursors: dict[int, Address] = {}
        self.used: dict[tuple[int, int], int] = {}
        """By IP version and address >> 12: the addresses held, as bits."""

    def hold(self, address: Address, attachment: Attachment) -> None:
        """An attachment holds an address."""
        self.holders[address] = attachment
        chunk, bit = self._bit(address)
        self.used[chunk] = self.used.get(chunk, 0) | bit

    def free(self, address: Address) -> None:
        """Nobody holds an address any more."""
        del self.holders[address]
        chunk, bit = self._bit(address)
        left = self.used.pop(chunk) & ~bit
        if left:
            self.used[chunk] = left

    def choose(self, index: int, ranges: RangeSet) -> Address | None:
        """The next free address of a range set; None: all are held."""
        for each, first, last in stretches(ranges, self.cursors.get(index)):
            found = self._first_free(each.family, first, last)
            if (each.family, found) == each.gateway:
                found = self._first_free(each.family, each.gateway[1] + 1, last)
            if found is not None:
                return each.family, found
        return None

    def _first_free(self, family: int, first: int, last: int) -> int | None:
        while first <= last:
            chunk = first >> _CHUNK_BITS
            free = ~self.used.get((family, chunk), 0) >> (first & (1 << _CHUNK_BITS) - 1)
            first += (free & -free).bit_length() - 1  # a full chunk leads to the first address of the next
            if first >> _CHUNK_BITS == chunk:
                return first if first <= last else None
        return None

    @staticmethod
    def _bit(address: Address) -> tuple[tuple[int, int], int]:
        family, value = address
        return (family, value >> _CHUNK_BITS), 1 << (value & (1 << _CHUNK_BITS) - 1)


class RangeLedger:
    """``holdings`` by attachment: one address of each range set, in their order; ``networks`` by name."""

    def __init__(self) -> None:
        self.holdings: dict[Attachment, RangeAssigned] = {}
        self.networks: dict[str, Network] = {}

    # --- requests ---------------------------------------------------------------------------------------------

    def add(self, request: RangeRequest, now: Now) -> RangeAdded:
        """Decide an ADD; the same attachment gets what it already has (host-local refuses it).

        Raises RefusedError: 106 if a range set has no free address, 104 or 105 for a requested address that cannot be
        had, 7 if what the attachment has is not in the ranges.
        """
        held = self.holdings.get(request.attachment)
        if held is not None:
            return RangeAdded(self._fitting(request, held), ())
        network = self._network(request.attachment.network)
        chosen = []
        for index, address in enumerate(self.choose(request)):
            # Also if a later set refuses the ADD: host-local goes on from there. No promise, so no fact tells it.
            network.cursors[index] = address
            chosen.append(format_address(*address))
        assigned = RangeAssigned(request.attachment, tuple(chosen), request.labels, now.unix, request.started)
        self.apply(assigned)
        return RangeAdded(assigned, (assigned,))

    def choose(self, request: RangeRequest) -> Iterator[Address]:
        """The address of each range set that an attachment without one gets next; raises RefusedError like ``add``.

        By itself it changes nothing.
        """
        network, wanted = self.networks.get(request.attachment.network) or Network(), list(request.wanted)
        for index, ranges in enumerate(request.sets):
            yield self._next(request, network, index, ranges, wanted)
        if wanted:
            second = any(find(ranges, wanted[0]) for ranges in request.sets)
            why = "would be the second one of its range set" if second else "is in no range"
            raise self._not_assignable(request, wanted[0], why)

    def released(self, attachment: Attachment) -> tuple[RangeReleased, ...]:
        """The fact that releases what an attachment holds, if it holds anything; not applied yet."""
        return (RangeReleased(attachment),) if attachment in self.holdings else ()

    def undo(self, assigned: RangeAssigned) -> None:
        """Take back an ADD whose facts could not be made durable, in the same step."""
        self._drop(assigned.attachment)

    def _next(
        self, request: RangeRequest, network: Network, index: int, ranges: RangeSet, wanted: list[Address]
    ) -> Address:
        for address in wanted:
            within = find(ranges, address)
            if within is None:
                continue
            wanted.remove(address)
            if address == within.gateway:
                raise self._not_assignable(request, address, "is the gateway")
            if address in network.holders:
                holder = network.holders[address]
                raise RefusedError(
                    Code.ADDRESS_TAKEN,
                    f"cannot assign the requested address {format_address(*address)} to {request.subject}: "
                    f"container {holder.container} ({holder.interface}) has it; ask for another one, or for none",
                )
            return address
        chosen = network.choose(index, ranges)
        if chosen is None:
            raise RefusedError(
                Code.RANGE_EXHAUSTED,
                f"cannot assign an address to {request.subject}: range set {index} of network "
                f"{request.attachment.network} ({', '.join(map(str, ranges))}) has no free address; "
                "widen it, or delete pods that are no longer needed",
            )
        return chosen

    @staticmethod
    def _not_assignable(request: RangeRequest, address: Address, why: str) -> RefusedError:
        return RefusedError(
            Code.ADDRESS_NOT_ASSIGNABLE,
            f"cannot assign the requested address {format_address(*address)} to {request.subject}: it {why} of "
            f"network {request.attachment.network} ({'; '.join(', '.join(map(str, each)) for each in request.sets)}); "
            "ask for another one, or for none",
        )

    @staticmethod
    def _fitting(request: RangeRequest, held: RangeAssigned) -> RangeAssigned:
        addresses = [read_address(text) for text in held.addresses]
        for index, ranges in enumerate(request.sets):
            if not any(find(ranges, address) for address in addresses):
                raise RefusedError(
                    Code.INVALID_CONFIGURATION,
                    f"cannot assign an address to {request.subject}: it has {', '.join(held.addresses)} of network "
                    f"{request.attachment.network}, and range set {index} ({', '.join(map(str, ranges))}) has none of "
                    "these: the ranges were changed; delete and recreate the pod",
                )
        return held

    # --- facts ------------------------------------------------------------------------------------------------

    def apply(self, fact: RangeAssigned | RangeReleased | RangeCursors) -> None:
        """Make a fact part of the state: one just decided, or one replayed."""
        match fact:
            case RangeAssigned():
                self._apply_assigned(fact)
            case RangeReleased():
                self._drop(fact.attachment)
            case RangeCursors():
                cursors = self._network(fact.network).cursors
                cursors.update((index, read_address(text)) for index, text in fact.addresses.items())

    def _apply_assigned(self, fact: RangeAssigned) -> None:
        network = self._network(fact.attachment.network)
        self._drop(fact.attachment)
        for index, text in enumerate(fact.addresses):
            address = read_address(text)
            if address in network.holders:
                # Only in a replay: somebody's address is given to nobody else, so its DEL never reached the state file.
                self._drop(network.holders[address])
            network.hold(address, fact.attachment)
            network.cursors[index] = address
        self.holdings[fact.attachment] = fact

    def _drop(self, attachment: Attachment) -> None:
        held = self.holdings.pop(attachment, None)
        if held is not None:
            network = self._network(attachment.network)
            for text in held.addresses:
                network.free(read_address(text))

    def forget_boot(self) -> None:
        """The host was booted: everything held was assigned in an earlier boot."""
        self.holdings = {attachment: replace(held, began=0) for attachment, held in self.holdings.items()}

    def _network(self, name: str) -> Network:
        network = self.networks.get(name)
        if network is None:
            network = self.networks[name] = Network()
        return network

    def checkpoint(self) -> Iterator[RangeAssigned | RangeCursors]:
        """A sequence of facts that makes an empty one equal to this one."""
        yield from self.holdings.values()
        for name, network in self.networks.items():
            yield RangeCursors(name, {index: format_address(*at) for index, at in network.cursors.items()})
