"""From a seed to what happens in a run: the cluster, and a list of events. Every part can be left out of it.

Nothing else of a run is drawn here: latencies and single faults come from the seed too, but as they are needed.
"""

from collections.abc import Sequence
from random import Random

from msgspec import Struct


class Event(Struct, frozen=True):
    """Something that happens at ``at`` (s) to a node (its index), for ``span`` seconds if it is a state."""

    at: float
    kind: str
    node: int
    arg: int = 0
    span: float = 0.0


class Plan(Struct, frozen=True):
    """The cluster of one run, and its events in order of time."""

    seed: int
    nodes: int
    families: tuple[int, ...]
    block_size: int
    """Prefix length of IPv4 blocks; IPv6 blocks have as many addresses."""
    blocks: int
    reserve: int
    durability: str
    strict: bool
    events: tuple[Event, ...]

    def keep(self, kept: Sequence[int]) -> "Plan":
        """The same run with some of its events only, by their positions."""
        return Plan(*(getattr(self, name) for name in self.__struct_fields__[:-1]), tuple(self.events[i] for i in kept))


WEIGHTS = {
    "pod": 30,
    "end": 18,
    "again": 5,
    "stray": 2,
    "race": 6,
    "burst": 3,
    "renew": 4,
    "kill": 5,
    "blind": 4,
    "fuse": 5,
    "reboot": 2,
    "down": 2,
    "cut": 4,
    "flaky": 8,
    "slow": 3,
    "full": 2,
    "broken": 1,
    "jump": 1,
    "compact": 2,
    "arrive": 5,
    "leave": 3,
    "tunnel": 2,
    "sweep": 3,
    "unown": 1,
    "disable": 1,
    "another": 2,
    "delete": 1,
    "reserved": 1,
    "lock": 1,
    "strict": 1,
}
"""How often each kind of event is drawn."""


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    random = Random(seed)
    families = random.choice(((4,), (4,), (4, 6)))
    size = random.choice((28, 29, 29, 30))
    nodes = random.choice((1, 2, 2, 3))
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    events, at = [], random.random()
    for _ in range(random.randint(8, 40)):
        at += random.choice((0.0, 0.0, random.random() * 0.05, random.random() * 2, random.random() * 8))
        kind = random.choices(kinds, weights)[0]
        span = random.choice((random.random(), random.random() * 5, random.random() * 30))
        events.append(Event(round(at, 4), kind, random.randrange(nodes), random.randrange(1000), round(span, 3)))
    return Plan(
        seed,
        nodes,
        families,
        size,
        random.choice((nodes, 8, 16)),
        random.choice((1, 2, 4)),
        random.choice(("journal", "journal", "journal", "fsync", "etcd")),
        random.random() < 0.2,
        tuple(events),
    )
