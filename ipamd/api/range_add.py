"""An ADD from host-local ranges: the node's pod CIDRs if they are named, the decision, the answer."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ipamd.api import hostlocal
from ipamd.api.cni import Invocation, NetworkConfig
from ipamd.api.http import Response
from ipamd.api.resolv import Dns, read_dns
from ipamd.api.steps import Stages, Steps
from ipamd.core.clock import Now
from ipamd.core.errors import RefusedError
from ipamd.core.ledger import Ledger


class PodCidrs(Protocol):
    """What Kubernetes says of this node's ``spec.podCIDRs``: () while they are not known."""

    def pod_cidrs(self) -> tuple[str, ...]:
        """From memory."""

    async def wait_for_pod_cidrs(self) -> tuple[str, ...]:
        """Wait for them; () if they do not come soon."""


class RangeAdds:
    """Needs neither pool nor store."""

    def __init__(self, ledger: Ledger, now: Callable[[], Now], steps: Steps) -> None:
        self._ledger, self._now, self._steps = ledger, now, steps
        self.cidrs: PodCidrs | None = None
        """None: Kubernetes is not asked."""

    def add(self, invocation: Invocation, stages: Stages) -> Response | Awaitable[Response]:
        """Answer an ADD, at once if the pod CIDRs are known or not named; raises RefusedError."""
        try:
            plan = hostlocal.read_plan(invocation.config, self._ask_cidrs)
        except hostlocal.UnknownCidrsError:
            if self.cidrs is None:
                raise
            return self._steps.guard(self._await_cidrs(invocation, stages, self.cidrs), invocation.config, stages)
        return self._assign(invocation, stages, plan)

    async def _await_cidrs(self, invocation: Invocation, stages: Stages, cidrs: PodCidrs) -> Response:
        began = self._steps.elapsed()
        try:
            known = await cidrs.wait_for_pod_cidrs()
        finally:
            stages.wait = self._steps.elapsed() - began
        plan = hostlocal.read_plan(invocation.config, lambda: known)
        decided = self._assign(invocation, stages, plan)
        return decided if isinstance(decided, Response) else await decided

    def _ask_cidrs(self) -> Sequence[str] | None:
        return None if self.cidrs is None else self.cidrs.pod_cidrs()

    def _assign(self, invocation: Invocation, stages: Stages, plan: hostlocal.Plan) -> Response | Awaitable[Response]:
        config = invocation.config
        dns = read_dns(config.ipam.resolvConf) if config.ipam.resolvConf else Dns()
        asked = hostlocal.range_request(invocation, plan)
        if asked.attachment in self._ledger.ranges.holdings:
            self._steps.catch_up()
        began = self._steps.elapsed()
        decided = self._ledger.add_from_ranges(asked, self._now())
        stages.decide = self._steps.elapsed() - began
        self._steps.persist_add(decided, stages)
        body = hostlocal.answer(config, plan, decided.assigned, dns)
        return self._steps.reply_add(invocation, stages, decided.assigned, body)

    def reason(self, config: NetworkConfig) -> str:
        """Why no ADD with this configuration can be served; "" if nothing in it hinders."""
        try:
            hostlocal.read_plan(config, self._ask_cidrs)
        except RefusedError as error:
            return error.msg
        return ""
