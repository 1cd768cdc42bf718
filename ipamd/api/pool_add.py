"""An ADD from pools: what Kubernetes says of the pod, the decision, the wait if the reserve is empty, the answer."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec.structs import replace

from ipamd.api import cni
from ipamd.api.asked import add_request, for_pod
from ipamd.api.cni import Invocation
from ipamd.api.http import Response
from ipamd.api.result import ResultAddress, check_answer, result
from ipamd.api.steps import Stages, Steps
from ipamd.api.waiting import CONFIRMED, Waiting
from ipamd.core.address import BITS
from ipamd.core.clock import Now
from ipamd.core.errors import RefusedError
from ipamd.core.facts import Assigned
from ipamd.core.ledger import Ledger, late
from ipamd.core.pod import PodFacts
from ipamd.core.request import Added, AddRequest, Shortage


class Pods(Protocol):
    """What Kubernetes says of pods, each by namespace, name and uid."""

    def pod(self, namespace: str, name: str, uid: str) -> PodFacts | None:
        """From memory; None if the pod is not known."""

    async def fetch(self, namespace: str, name: str, uid: str) -> PodFacts:
        """Ask for a pod that is not known; raises RefusedError."""


class PoolAdds:
    """Decides in one step of the ledger; what follows before the reply is one write to the journal."""

    def __init__(self, ledger: Ledger, waiting: Waiting, now: Callable[[], Now], steps: Steps) -> None:
        self._ledger, self._waiting, self._now, self._steps = ledger, waiting, now, steps
        self.pods: Pods | None = None
        """None: Kubernetes is not asked."""

    def add(self, invocation: Invocation, stages: Stages) -> Response | Awaitable[Response]:
        """Answer an ADD, at once if memory can; raises RefusedError."""
        asked = add_request(invocation)
        cni.check_node(invocation.config, self._ledger.node)
        check_answer(invocation.config, self._ledger.settings)
        if asked.attachment in self._ledger.holdings:
            self._steps.catch_up()  # a DEL that came before this repeated ADD must not come after it
        if self.pods is not None and asked.attachment not in self._ledger.holdings:
            who = cni.pod_of(invocation)
            if who is not None:
                pod = self.pods.pod(*who)
                if pod is None:
                    work = self._fetch(invocation, stages, asked, self.pods, who)
                    return self._steps.guard(work, invocation.config, stages)
                asked = for_pod(asked, invocation.config, pod)
        return self._decide(invocation, stages, asked)

    async def _fetch(
        self, invocation: Invocation, stages: Stages, asked: AddRequest, pods: Pods, who: tuple[str, str, str]
    ) -> Response:
        began = self._steps.elapsed()
        try:
            pod = await pods.fetch(*who)
        finally:
            stages.wait = self._steps.elapsed() - began
        decided = self._decide(invocation, stages, for_pod(asked, invocation.config, pod))
        return decided if isinstance(decided, Response) else await decided

    def _decide(self, invocation: Invocation, stages: Stages, asked: AddRequest) -> Response | Awaitable[Response]:
        began = self._steps.elapsed()
        decided: Added | Shortage | RefusedError
        try:
            decided = self._ledger.add(asked, self._now())
        except RefusedError as error:
            if error.code not in CONFIRMED:
                raise
            decided = error
        stages.decide = self._steps.elapsed() - began
        if not isinstance(decided, Added):
            return self._steps.guard(self._wait(invocation, stages, asked, decided), invocation.config, stages)
        self._steps.persist_add(decided, stages)
        body = self._result(invocation, asked, decided.assigned)
        return self._steps.reply_add(invocation, stages, decided.assigned, body)

    async def _wait(
        self, invocation: Invocation, stages: Stages, asked: AddRequest, found: Shortage | RefusedError
    ) -> Response:
        began = self._steps.elapsed()
        try:
            decided = await self._waiting.join(asked, found)
        finally:
            stages.wait += self._steps.elapsed() - began
        if self._ledger.holdings.get(asked.attachment) is not decided.assigned:
            raise late(asked)  # a DEL came between the decision and this task's turn
        body = self._result(invocation, asked, decided.assigned)
        finished = self._steps.reply_add(invocation, stages, decided.assigned, body)
        return finished if isinstance(finished, Response) else await finished

    def _addresses(self, assigned: Assigned) -> list[ResultAddress]:
        blocks = self._ledger.blocks
        return [
            ResultAddress(block.net.family, block.address(place.ordinal), block.net.prefix)
            for place, block in ((place, blocks[place.block]) for place in assigned.places)
        ]

    def _result(self, invocation: Invocation, asked: AddRequest, assigned: Assigned) -> bytes:
        """The answer to an ADD; to who asked for addresses only these.

        What was asked for stands alone, without its block's mask, also when the ADD is repeated and the annotation that
        asked is not read again.
        """
        addresses = self._addresses(assigned)
        if asked.addresses:
            addresses = [a for a in addresses if a.family in asked.addresses]
        if asked.addresses or assigned.asked:
            alone = {*asked.addresses, *assigned.asked}
            addresses = [replace(a, prefix=BITS[a.family]) if a.family in alone else a for a in addresses]
        return result(invocation.config, addresses)
