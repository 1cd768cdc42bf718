"""Which pools serve a request on this node, and what is said when none does.

Calico's precedence: pools that the request names (by name or CIDR) must exist and be enabled, selectors and ``Manual``
are then ignored; else every enabled ``Automatic`` pool whose ``nodeSelector`` matches the node and whose
``namespaceSelector`` matches the pod's namespace. Then the pool must allow the use. Pools are tried in name order. A
pod never gets an address from a pool that was not meant for it.
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from ipamd.core.address import FAMILIES
from ipamd.core.errors import Code, RefusedError
from ipamd.core.pool import Pool
from ipamd.core.request import AddRequest

_LISTED = 8
"""Pools that a refusal accounts for: an event of Kubernetes holds a kilobyte."""


class Exclusion(Struct, frozen=True):
    """Why a pool does not serve, reading on from its name, and what would change that."""

    why: str
    remedy: str


class Judged(Struct, frozen=True):
    """What the rules say of one pool: ``exclusion`` is what keeps it from serving, None if nothing does.

    ``pool`` is None if there is no such pool, or nothing of its record can be understood.
    """

    name: str
    pool: Pool | None
    exclusion: Exclusion | None


class Selection:
    """What follows from pools and node labels alone, worked out once, for a use (``Workload``, ``Tunnel``).

    ``broken`` are pools by name of which nothing is known but what is wrong with their records.
    """

    def __init__(
        self,
        pools: Iterable[Pool],
        node: str,
        labels: Mapping[str, str],
        use: str = "Workload",
        broken: Mapping[str, str] | None = None,
    ) -> None:
        self._node, self._labels, self._use = node, labels, use
        self._broken = {
            name: Exclusion(f"has a record that cannot be understood ({why})", "correct the record")
            for name, why in (broken or {}).items()
        }
        ordered = sorted(pools, key=lambda pool: pool.name)
        self._pools = {family: [pool for pool in ordered if pool.family == family] for family in FAMILIES}
        self._serving = {
            family: tuple(pool for pool in its if self.exclusion(pool) is None) for family, its in self._pools.items()
        }
        self._unconditional = {
            family: tuple(pool for pool in its if pool.namespace_selector.selects_all)
            for family, its in self._serving.items()
        }
        self._named = {name: pool for pool in ordered for name in (pool.name, str(pool.cidr)) if self.bar(pool) is None}

    def serving(self, family: int) -> Sequence[Pool]:
        """The pools that serve pods of every namespace which name none, in name order."""
        return self._unconditional[family]

    def exclusion(self, pool: Pool) -> Exclusion | None:
        """What keeps a pool from serving by itself on this node; None if it serves, be it some namespaces only."""
        if pool.disabled:
            return self.bar(pool)
        if pool.manual:
            return Exclusion("is Manual (only for requests that name it)", "name a pool")
        if self._use not in pool.allowed_uses:
            return self.bar(pool)
        if pool.unreadable:
            return Exclusion(f"serves nobody: {pool.unreadable}", "correct the selector")
        if not pool.node_selector.matches(self._labels):
            return Exclusion(f"excludes node {self._node} by its nodeSelector ({pool.node_selector})", "label the node")
        return None

    def choose(self, request: AddRequest, family: int) -> Sequence[Pool]:
        """The pools to try for one address, in order.

        Raises RefusedError (NO_POOL) that says for each pool what excluded it.
        """
        named = request.named.get(family)
        if named:
            return self._choose_named(request, family, named)
        chosen: Sequence[Pool] = self._serving[family]
        if len(chosen) != len(self._unconditional[family]):
            chosen = [pool for pool in chosen if _namespace_exclusion(pool, request) is None]
        if chosen:
            return chosen
        raise self._refusal(request, family)

    def judge(self, request: AddRequest | None, family: int) -> list[Judged]:
        """What admits or excludes each pool, in name order: those of an IP version, and those that nobody can read.

        Without a request: what does so for every pod of this node that names none, whatever its namespace.
        """
        if request is not None and (named := request.named.get(family)):
            return self._judge_named(request, family, named)
        judged = []
        for pool in self._pools[family]:
            exclusion = self.exclusion(pool)
            if exclusion is None and request is not None:
                exclusion = _namespace_exclusion(pool, request)
            judged.append(Judged(pool.name, pool, exclusion))
        judged += [Judged(name, None, exclusion) for name, exclusion in self._broken.items()]
        return sorted(judged, key=lambda each: each.name)

    def _judge_named(self, request: AddRequest, family: int, named: Sequence[str]) -> list[Judged]:
        by = request.named_by.get(family, "the request")
        found = {name: self._find(name, family) for name in named}
        meant = {pool.name for pool in found.values() if pool is not None}
        passed_over = Exclusion(f"is not among the pools that {by} names", "name it")
        judged = [
            Judged(pool.name, pool, self.bar(pool) if pool.name in meant else passed_over)
            for pool in self._pools[family]
        ]
        judged += [Judged(name, None, self._bar_named(name, family)) for name in named if found[name] is None]
        return sorted(judged, key=lambda each: each.name)

    def bar(self, pool: Pool) -> Exclusion | None:
        """What keeps a pool even from who names it."""
        if pool.disabled:
            return Exclusion("is being deleted" if pool.deleting else "is disabled", "enable a pool")
        if self._use not in pool.allowed_uses:
            uses = ", ".join(pool.allowed_uses)
            return Exclusion(f"is not allowed for use {self._use} (allowedUses: {uses})", "create a pool")
        return None

    def _choose_named(self, request: AddRequest, family: int, named: Sequence[str]) -> Sequence[Pool]:
        chosen = {}
        for name in named:
            pool = self._named.get(name) or self._named.get(_masked(name))
            if pool is None or pool.family != family:
                raise self._refusal_named(request, family, name)
            chosen[pool.name] = pool
        return list(chosen.values()) if len(chosen) == 1 else [pool for _name, pool in sorted(chosen.items())]

    def _refusal(self, request: AddRequest, family: int) -> RefusedError:
        excluded = [(each.name, each.exclusion) for each in self.judge(request, family) if each.exclusion]
        reasons = [f"pool {name} {exclusion.why}" for name, exclusion in excluded[:_LISTED]]
        if len(excluded) > _LISTED:
            reasons.append(f"{len(excluded) - _LISTED} more pools do not serve (GET /v1/pools says why)")
        remedies = dict.fromkeys(exclusion.remedy for _name, exclusion in excluded)
        return RefusedError(
            Code.NO_POOL,
            f"cannot assign an IPv{family} address to {request.subject}: "
            f"{'; '.join(reasons) or f'there is no IPv{family} pool'}; "
            f"{' or '.join(remedies) or 'create one'}",
        )

    @property
    def damaged(self) -> str:
        """What is wrong with the records of pools of which nothing else is known, as a clause; "" if there are none."""
        return "; ".join(f"pool {name} {exclusion.why}" for name, exclusion in sorted(self._broken.items())[:_LISTED])

    def _refusal_named(self, request: AddRequest, family: int, name: str) -> RefusedError:
        exclusion = self._bar_named(name, family)
        by = request.named_by.get(family, "the request")
        return RefusedError(
            Code.NO_POOL,
            f"cannot assign an IPv{family} address to {request.subject}: pool {name}, which {by} names, "
            f"{exclusion.why if exclusion else _ABSENT.why}; {_ABSENT.remedy}",
        )

    def _find(self, name: str, family: int) -> Pool | None:
        """The pool that is meant by a name or CIDR, rather one that serves who names it."""
        its = [pool for pool in self._pools[family] if name == pool.name or _masked(name) == str(pool.cidr)]
        return next((pool for pool in its if self.bar(pool) is None), its[0] if its else None)

    def _bar_named(self, name: str, family: int) -> Exclusion | None:
        """What keeps a pool from who names it by this name or CIDR."""
        pool = self._find(name, family)
        return self._broken.get(name, _ABSENT) if pool is None else self.bar(pool)


_ABSENT = Exclusion("does not exist", "name an enabled pool of this IP version, by name or CIDR")


def _namespace_exclusion(pool: Pool, request: AddRequest) -> Exclusion | None:
    selector, labels = pool.namespace_selector, request.namespace_labels
    if selector.selects_all:
        return None
    if labels is None:
        return Exclusion(
            f"has a namespaceSelector ({selector}), and the labels of namespaces are not known because Kubernetes is "
            "not configured",
            "configure Kubernetes",
        )
    if selector.matches(labels):
        return None
    namespace = request.labels.get("namespace", "")
    return Exclusion(f"excludes namespace {namespace} by its namespaceSelector ({selector})", "label the namespace")


def _masked(text: str) -> str:
    """The network of a CIDR in canonical form, as Calico reads it: 10.0.0.1/16 is 10.0.0.0/16; "" if it is none."""
    try:
        return str(ipaddress.ip_network(text, strict=False)) if "/" in text else ""
    except ValueError:
        return ""
