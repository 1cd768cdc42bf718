"""How many addresses a node keeps in reserve, for each pool it uses.

The target is a pure function of what happened: ``minimum`` at rest, doubled each time a burst drains the reserve to
under a quarter of it or an ADD has to wait, up to ``maximum``, and a quarter less each ``decay`` without such an event.
Peers that got this right: Azure CNS v2 (target from use), AWS ``WARM_IP_TARGET``, Cilium ``pre-allocate``.

In a *tight* pool (no block left to claim) and in a *pressed* one (a node somewhere found it exhausted while a pod
waited) a reserve would withhold addresses from others' pods: it is small then, or none.

All times are nanoseconds of one clock, passed in.
"""

from msgspec import Struct

from ipamd.core.errors import Code

RETRY_AFTER = 1_000_000_000
"""How long a refusal to supply a pool stands before an ADD makes the node look again (ns)."""

TIGHT = 2
"""How many addresses of a tight pool are kept at rest: nodes without ipamd can ask nobody to give them back."""

PRESSURE = 30_000_000_000
"""How long a pool counts as pressed after this node was told (ns), by its own clock: others' may differ."""


class ReservePolicy(Struct, frozen=True):
    """The operator's settings: addresses at rest and at most, and ns after which a grown target shrinks a step."""

    minimum: int = 16
    maximum: int = 256
    decay: int = 30_000_000_000


class Refusal(Struct, frozen=True):
    """Why no more addresses of a pool can be had, as found out at ``at``.

    ``remedy`` is what to do, as long as ``why`` is only half of the answer and does not say so.
    """

    code: Code
    why: str
    at: int
    remedy: str = ""

    def because(self, also: str, at: int) -> "Refusal":
        """The refusal in full, for one more reason."""
        return Refusal(self.code, f"{self.why}, and {also}; {self.remedy}", at)


class Reserve:
    """The reserve of one pool on this node: its target, who waits for it, and why it cannot be filled.

    ``closed`` says why this node can claim no more block of the pool, ``refusal`` why it can have no more address of
    it, not even of other nodes' blocks; ``tight`` that there is no block left for anybody. ``borrowed_at`` is when it
    last borrowed.
    """

    __slots__ = (
        "_changed",
        "borrowed_at",
        "closed",
        "level",
        "named",
        "policy",
        "pressed_until",
        "refusal",
        "supplied",
        "tight",
        "waiting",
    )

    def __init__(self, policy: ReservePolicy, now: int) -> None:
        self.policy = policy
        self.level = policy.minimum
        self.waiting = 0
        self.closed: Refusal | None = None
        self.refusal: Refusal | None = None
        self.tight = False
        self.pressed_until = 0
        self.borrowed_at = 0
        self.supplied = 0
        """How often addresses came in: while they do, the pool is not exhausted."""
        self.named = False
        """Whether an ADD named the pool since the daemon's start, so that its selectors do not count."""
        self._changed = now

    @property
    def rest(self) -> int:
        """How many addresses should be available while nobody waits."""
        if self.pressed_until:
            return 0
        return min(self.level, TIGHT) if self.tight else self.level

    @property
    def target(self) -> int:
        """How many addresses should be available: those at rest, and one for each ADD that waits."""
        return self.rest + self.waiting

    def drained(self, available: int, now: int) -> bool:
        """Tell what is left after an address was taken; whether that is so little that to fill it should not wait."""
        if available * 4 < self.level:
            self.grow(now)
        return available * 2 <= self.rest

    def grow(self, now: int) -> None:
        """Double the level: the reserve was too small for what came."""
        if self.rest < self.level:
            return  # it is small on purpose
        # Not twice for one burst: the doubling must have had time to take effect.
        if now - self._changed < GROWTH_PAUSE and self.level > self.policy.minimum:
            return
        self.level = min(self.level * 2, max(self.policy.maximum, self.policy.minimum))
        self._changed = now

    def decay(self, now: int) -> None:
        """Shrink the level a step for each ``decay`` that went by without growth; end a pressure that is over."""
        while self.level > self.policy.minimum and now - self._changed >= self.policy.decay:
            self.level = max(self.policy.minimum, self.level - max(1, self.level // 4))
            self._changed += self.policy.decay
        if now >= self.pressed_until:
            self.pressed_until = 0

    def press(self, now: int) -> None:
        """A node says that it found the pool exhausted while a pod waited."""
        self.pressed_until = now + PRESSURE

    def relieve(self) -> None:
        """The node that said so takes it back."""
        self.pressed_until = 0

    def reopen(self) -> None:
        """Forget why there was nothing to be had: a block was claimed, or the rules changed."""
        self.closed = self.refusal = None
        self.tight = False

    def surplus(self, available: int) -> int:
        """How many of the available addresses to give back: none below twice the target (hysteresis).

        Of a pool in which others need them, all that is above the target.
        """
        excess = max(0, available - self.target)
        return excess if self.rest < self.level or available > 2 * self.target else 0


GROWTH_PAUSE = 5_000_000
"""Two doublings are at least this far apart (ns): about one transaction."""
