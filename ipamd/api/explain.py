"""``/v1/explain``: why a pod, an address or this node is served as it is, as data; nothing is changed by asking.

``?pod=NAMESPACE/NAME`` tells what the pod holds and what its next ADD would be answered, ``?address=IP`` where an
address is and who has it, ``?node`` what this node may use and has. An ADD also depends on the CNI configuration:
``&config=`` is one as JSON, without it the pod asks for no pool and for each IP version that has pools. Unlike the
other routes it may wait, for Kubernetes and for one look at the store.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from ipamd.api import cni, hostlocal, views
from ipamd.api.access import Peer
from ipamd.api.answers import read_query, refused, shown
from ipamd.api.asked import add_request, for_pod
from ipamd.api.http import Request, Response
from ipamd.api.result import check_answer
from ipamd.core.address import FAMILIES, Cidr, parse_address
from ipamd.core.clock import Now
from ipamd.core.errors import Code, RefusedError
from ipamd.core.explain import Decision, PoolStep, Refusal, Seen, explain, explain_ranges, steps_of_node, unseen
from ipamd.core.ledger import Ledger
from ipamd.core.pod import PodFacts
from ipamd.core.whereabouts import whereabouts


class Pods(Protocol):
    """What Kubernetes says of pods by name alone."""

    def find(self, namespace: str, name: str) -> PodFacts | None:
        """From memory; None if this node has no such pod, or it is not known yet."""

    async def fetch(self, namespace: str, name: str, uid: str) -> PodFacts:
        """Ask for a pod that is not known; raises RefusedError."""

    def pod_cidrs(self) -> tuple[str, ...]:
        """This node's, from memory."""


class PodView(Struct, frozen=True):
    """A pod: what it ``holds``, and the ``decisions`` that its next ADD would get.

    ``kubernetes``: why nothing is known of its annotations and its namespace's labels, else "". ``refusal``: what its
    ADD would be refused with before any pool is looked at.
    """

    pod: str
    node: str
    kubernetes: str
    holds: list[views.AllocationView | views.RangeAllocationView]
    decisions: list[Decision]
    refusal: Refusal | None


class NodeView(Struct, frozen=True):
    """This node: its labels, the cluster's limits, what admits or excludes each pool, and what it has.

    ``reason``: why an ADD could not be served now, else "".
    """

    node: str
    labels: dict[str, str]
    reason: str
    locked: bool
    draining: bool
    strict_affinity: bool
    auto_allocate_blocks: bool
    max_blocks: int
    cooldown_seconds: int
    pools: list[PoolStep]
    blocks: list[views.BlockView]
    reserve: list[views.ReserveView]


class Explain:
    """Answers ``/v1/explain``.

    ``ready`` says why an ADD could not be served now, ``excuse`` why an address is not to be had at once, "" if nothing
    is known. ``look`` asks the store what it has where an address (an integer) of a block lies.
    """

    def __init__(
        self,
        ledger: Ledger,
        now: Callable[[], Now],
        ready: Callable[[], str],
        excuse: Callable[[], str],
        look: Callable[[Cidr, int], Awaitable[Seen]],
    ) -> None:
        self._ledger, self._now, self._ready, self._excuse, self._look = ledger, now, ready, excuse, look
        self.pods: Pods | None = None
        """None: Kubernetes is not asked."""

    def answer(self, request: Request, _peer: Peer) -> Response | Awaitable[Response]:
        """Explain what the query names."""
        try:
            asked = read_query(request, ("pod", "address", "node", "config"))
            match asked:
                case {"pod": pod, **rest} if rest.keys() <= {"config"}:
                    return self._guard(self._pod(pod, rest.get("config", "")))
                case {"address": address, **rest} if not rest:
                    return self._guard(self._address(address))
                case {"node": node, **rest} if not rest:
                    return shown(self._node(node))
            if asked:
                raise _unusable("it names more than one thing; ask for one at a time")
            raise _unusable("it names nothing; give pod=NAMESPACE/NAME, address=IP or node")
        except RefusedError as error:
            return refused(error)

    @staticmethod
    async def _guard(work: Awaitable[object]) -> Response:
        try:
            return shown(await work)
        except RefusedError as error:
            return refused(error)

    # --- a pod ------------------------------------------------------------------------------------------------

    async def _pod(self, text: str, config: str) -> PodView:
        namespace, slash, name = text.partition("/")
        if not (namespace and slash and name) or "/" in name:
            raise _unusable(f"{text[:80]!r} is no pod; write NAMESPACE/NAME")
        network = cni.read_config(Request("", "", "", {}, config.encode(), keep_alive=False)) if config else None
        kubernetes, decisions, refusal = "", list[Decision](), None
        try:
            facts, kubernetes = await self._facts(namespace, name)
            decisions = await self._decide(namespace, name, network, facts)
        except RefusedError as error:
            refusal = Refusal(error.code, error.msg)
        holds = [each for each in views.allocations(self._ledger) if (each.namespace, each.pod) == (namespace, name)]
        return PodView(text, self._ledger.node, kubernetes, holds, decisions, refusal)

    async def _facts(self, namespace: str, name: str) -> tuple[PodFacts | None, str]:
        """What Kubernetes says of a pod, or why it is not asked; raises RefusedError."""
        if self.pods is None:
            return None, "it is not asked: kubernetes.config is not set"
        return self.pods.find(namespace, name) or await self.pods.fetch(namespace, name, ""), ""

    async def _decide(
        self, namespace: str, name: str, network: cni.NetworkConfig | None, facts: PodFacts | None
    ) -> list[Decision]:
        """As ``PoolAdds`` and ``RangeAdds`` make a request of an ADD; raises RefusedError."""
        ledger, now = self._ledger, self._now()
        headers = {"cni-command": "ADD", "cni-containerid": "explain", "cni-netns": "-", "cni-ifname": "eth0"}
        headers["cni-args"] = f"K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"
        call = Request("", "", "", headers, b"", keep_alive=False)
        invocation = cni.read_invocation(call, network or self._plain(), now.boot)
        config = invocation.config
        if hostlocal.serves(config):
            plan = hostlocal.read_plan(config, lambda: None if self.pods is None else self.pods.pod_cidrs())
            return explain_ranges(ledger, hostlocal.range_request(invocation, plan))
        asked = add_request(invocation)
        cni.check_node(config, ledger.node)
        check_answer(config, ledger.settings)
        if facts is not None:
            # What Calico's main plugin reads of the annotations and passes on is not in its configuration yet.
            asked = for_pod(asked, replace(config, type=""), facts)
        seen = {
            str(block): await self._look(block, value)
            for family, value in asked.addresses.items()
            if (block := unseen(ledger, family, value)) is not None
        }
        return explain(ledger, asked, self._now(), self._excuse(), seen)

    def _plain(self) -> cni.NetworkConfig:
        """A configuration that asks for an address of each IP version that has pools, IPv4 at least."""
        families = {pool.family for pool in self._ledger.settings.pools.values()} or {FAMILIES[0]}
        return cni.NetworkConfig(
            "explain", "", "1.0.0", cni.Ipam("ipamd", assign_ipv4=4 in families, assign_ipv6=6 in families)
        )

    # --- an address, this node --------------------------------------------------------------------------------

    async def _address(self, text: str) -> object:
        try:
            family, value = parse_address(text)
        except ValueError as error:
            raise _unusable(f"{text[:80]!r} is no address; write one such as 10.0.0.1") from error
        block = unseen(self._ledger, family, value)
        if block is None:
            return whereabouts(self._ledger, family, value, self._now())
        return whereabouts(self._ledger, family, value, self._now(), await self._look(block, value))

    def _node(self, name: str) -> NodeView:
        ledger, settings = self._ledger, self._ledger.settings
        if name not in ("", ledger.node):
            raise _unusable(f"this daemon serves node {ledger.node}, not {name[:80]}; ask the daemon of that node")
        now = self._now()
        return NodeView(
            ledger.node,
            dict(settings.node_labels),
            self._ready(),
            settings.locked,
            ledger.draining,
            settings.config.strict_affinity,
            settings.config.auto_allocate_blocks,
            settings.config.block_limit,
            settings.config.cooldown,
            steps_of_node(ledger, now),
            views.blocks(ledger),
            views.reserves(ledger, now.boot),
        )


def _unusable(why: str) -> RefusedError:
    return RefusedError(Code.INVALID_ENVIRONMENT, f"cannot explain: {why}")
