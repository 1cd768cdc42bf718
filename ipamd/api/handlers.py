"""CNI requests, from the parsed HTTP request to its response: decide, make durable, reply.

On the way to the reply there is no store, no disk sync, no log line and no thread, unless ``durability`` asks for it;
only an ADD waits that finds the reserve empty, or would be refused for want of a pool, or whose pod Kubernetes has not
told of yet. ``decide`` and mutate happen in one step of the ledger; what follows before the reply is one write to the
journal.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from ipamd.api import cni, hostlocal
from ipamd.api.access import Peer
from ipamd.api.asked import add_request, for_pod
from ipamd.api.cni import Invocation, NetworkConfig
from ipamd.api.http import Request, Response
from ipamd.api.resolv import Dns, read_dns
from ipamd.api.result import ResultAddress, check_gateway, error_object, result
from ipamd.api.waiting import CONFIRMED, Waiting, not_durable
from ipamd.core.address import BITS
from ipamd.core.clock import Now
from ipamd.core.confirm import confirm
from ipamd.core.errors import Code, NotDurableError, RefusedError
from ipamd.core.facts import Assigned, Fact, RangeAssigned
from ipamd.core.garbage import collect
from ipamd.core.ledger import Ledger, late
from ipamd.core.pod import PodFacts
from ipamd.core.request import Added, AddRequest, RangeAdded, Shortage

STATUS = {
    Code.TRY_AGAIN_LATER: 503,
    Code.NOT_AVAILABLE: 503,
    Code.NO_POOL: 409,
    Code.EXHAUSTED: 409,
    Code.BLOCK_LIMIT: 409,
    Code.DELETED: 409,
    Code.ADDRESS_TAKEN: 409,
    Code.ADDRESS_NOT_ASSIGNABLE: 409,
    Code.RANGE_EXHAUSTED: 409,
    Code.POD_UNKNOWN: 409,
    Code.MISMATCH: 409,
    Code.IO_FAILURE: 500,
}
"""The HTTP status of a refusal, by its CNI code; 400 for the others."""

_SUCCESS = (("Ipamd-Exit", "0"),)
_FAILURE = (("Ipamd-Exit", "1"),)


class Stages(Struct):
    """How long one request and its stages took (ns), for the metrics: 0 where a stage did not happen.

    ``queue`` is from the plugin's start to the arrival here: its exec, its connect, and the wait for this daemon;
    ``wait`` is for an address, or for Kubernetes to tell of the pod.
    """

    verb: str
    began: int
    total: int = 0
    queue: int = 0
    decide: int = 0
    journal: int = 0
    wait: int = 0


class Pods(Protocol):
    """What Kubernetes says of pods, each by namespace, name and uid."""

    def pod(self, namespace: str, name: str, uid: str) -> PodFacts | None:
        """From memory; None if the pod is not known."""

    async def fetch(self, namespace: str, name: str, uid: str) -> PodFacts:
        """Ask for a pod that is not known; raises RefusedError."""


class PodCidrs(Protocol):
    """What Kubernetes says of this node's ``spec.podCIDRs``: () while they are not known."""

    def pod_cidrs(self) -> tuple[str, ...]:
        """From memory."""

    async def wait_for_pod_cidrs(self) -> tuple[str, ...]:
        """Wait for them; () if they do not come soon."""


class Handlers:
    """Serves ``POST /v1/cni``.

    ``append`` makes facts survive a crash of the daemon (raises NotDurableError if it cannot), ``owe`` does so as soon
    as it can, before any later ones; ``wake`` tells the writer of the store; ``durable``, if ``durability`` asks for
    more, is awaited before the reply with the facts it is about. ``observe`` is told the outcome of each request;
    ``elapsed`` (ns) is only measured with.
    """

    def __init__(
        self,
        ledger: Ledger,
        waiting: Waiting,
        now: Callable[[], Now],
        elapsed: Callable[[], int],
        append: Callable[[Sequence[Fact]], None],
        owe: Callable[[Sequence[Fact]], None],
        wake: Callable[[], None],
        observe: Callable[[Stages, int], None],
        durable: Callable[[Sequence[Fact]], Awaitable[None]] | None = None,
    ) -> None:
        self._ledger, self._waiting, self._now, self._elapsed = ledger, waiting, now, elapsed
        self._append, self._owe, self._wake, self._observe, self._durable = append, owe, wake, observe, durable
        self.ready: Callable[[], str] = lambda: ""
        """Why an ADD could not be served now; "" if it could."""
        self.catch_up: Callable[[], None] = lambda: None
        """Carries out the DELs that were kept while the daemon was away."""
        self.able: Callable[[], str] = lambda: ""
        """Why not even an ADD from host-local ranges could be, which needs neither pool nor store."""
        self.cidrs: PodCidrs | None = None
        """None: Kubernetes is not asked."""
        self.pods: Pods | None = None
        """None: Kubernetes is not asked."""

    def cni(self, request: Request, _peer: Peer) -> Response | Awaitable[Response]:
        """Answer one call of the plugin."""
        arrival = self._now().boot
        stages = Stages(request.headers.get("cni-command", "?"), self._elapsed())
        version = cni.VERSIONS[-1]
        try:
            config = cni.read_config(request)
            version = config.cniVersion
            invocation = cni.read_invocation(request, config, arrival)
            stages.queue = arrival - invocation.started
            match invocation.command:
                case "ADD":
                    return self._add(invocation, stages)
                case "DEL":
                    return self._delete(invocation, stages)
                case "CHECK":
                    return self._done(stages, self._check(invocation))
                case "STATUS":
                    return self._done(stages, self._status(config))
                case _:
                    return self._collect(invocation, stages)
        except RefusedError as error:
            return self._refuse(version, stages, error)

    # --- verbs ------------------------------------------------------------------------------------------------

    def _add(self, invocation: Invocation, stages: Stages) -> Response | Awaitable[Response]:
        if hostlocal.serves(invocation.config):
            return self._add_from_ranges(invocation, stages)
        asked = add_request(invocation)
        cni.check_node(invocation.config, self._ledger.node)
        check_gateway(invocation.config, self._ledger.settings)
        if asked.attachment in self._ledger.holdings:
            self.catch_up()  # a DEL that came before this repeated ADD must not come after it
        if self.pods is not None and asked.attachment not in self._ledger.holdings:
            who = cni.pod_of(invocation)
            if who is not None:
                pod = self.pods.pod(*who)
                if pod is None:
                    work = self._fetch(invocation, stages, asked, self.pods, who)
                    return self._guard(work, invocation.config, stages)
                asked = for_pod(asked, invocation.config, pod)
        return self._decide(invocation, stages, asked)

    async def _fetch(
        self, invocation: Invocation, stages: Stages, asked: AddRequest, pods: Pods, who: tuple[str, str, str]
    ) -> Response:
        began = self._elapsed()
        try:
            pod = await pods.fetch(*who)
        finally:
            stages.wait = self._elapsed() - began
        decided = self._decide(invocation, stages, for_pod(asked, invocation.config, pod))
        return decided if isinstance(decided, Response) else await decided

    def _decide(self, invocation: Invocation, stages: Stages, asked: AddRequest) -> Response | Awaitable[Response]:
        began = self._elapsed()
        decided: Added | Shortage | RefusedError
        try:
            decided = self._ledger.add(asked, self._now())
        except RefusedError as error:
            if error.code not in CONFIRMED:
                raise
            decided = error
        stages.decide = self._elapsed() - began
        if not isinstance(decided, Added):
            return self._guard(self._wait(invocation, stages, asked, decided), invocation.config, stages)
        return self._finish_add(invocation, stages, asked, decided)

    async def _wait(
        self, invocation: Invocation, stages: Stages, asked: AddRequest, found: Shortage | RefusedError
    ) -> Response:
        began = self._elapsed()
        try:
            decided = await self._waiting.join(asked, found)
        finally:
            stages.wait += self._elapsed() - began
        if self._ledger.holdings.get(asked.attachment) is not decided.assigned:
            raise late(asked)  # a DEL came between the decision and this task's turn
        body = self._result(invocation, asked, decided.assigned)
        finished = self._reply_add(invocation, stages, decided.assigned, body)
        return finished if isinstance(finished, Response) else await finished

    def _add_from_ranges(self, invocation: Invocation, stages: Stages) -> Response | Awaitable[Response]:
        try:
            plan = hostlocal.read_plan(invocation.config, self._ask_cidrs)
        except hostlocal.UnknownCidrsError:
            if self.cidrs is None:
                raise
            return self._guard(self._await_cidrs(invocation, stages, self.cidrs), invocation.config, stages)
        return self._assign_from_ranges(invocation, stages, plan)

    async def _await_cidrs(self, invocation: Invocation, stages: Stages, cidrs: PodCidrs) -> Response:
        began = self._elapsed()
        try:
            known = await cidrs.wait_for_pod_cidrs()
        finally:
            stages.wait = self._elapsed() - began
        plan = hostlocal.read_plan(invocation.config, lambda: known)
        decided = self._assign_from_ranges(invocation, stages, plan)
        return decided if isinstance(decided, Response) else await decided

    def _ask_cidrs(self) -> Sequence[str] | None:
        return None if self.cidrs is None else self.cidrs.pod_cidrs()

    def _assign_from_ranges(
        self, invocation: Invocation, stages: Stages, plan: hostlocal.Plan
    ) -> Response | Awaitable[Response]:
        config = invocation.config
        dns = read_dns(config.ipam.resolvConf) if config.ipam.resolvConf else Dns()
        asked = hostlocal.range_request(invocation, plan)
        if asked.attachment in self._ledger.ranges.holdings:
            self.catch_up()
        began = self._elapsed()
        decided = self._ledger.add_from_ranges(asked, self._now())
        stages.decide = self._elapsed() - began
        self._persist_add(decided, stages)
        body = hostlocal.answer(config, plan, decided.assigned, dns)
        return self._reply_add(invocation, stages, decided.assigned, body)

    def _finish_add(
        self, invocation: Invocation, stages: Stages, asked: AddRequest, decided: Added
    ) -> Response | Awaitable[Response]:
        self._persist_add(decided, stages)
        body = self._result(invocation, asked, decided.assigned)
        return self._reply_add(invocation, stages, decided.assigned, body)

    def _persist_add(self, decided: Added | RangeAdded, stages: Stages) -> None:
        if decided.facts:
            try:
                self._persist(decided.facts, stages)
            except NotDurableError as error:
                raise not_durable(self._ledger, decided, error) from error

    def _reply_add(
        self, invocation: Invocation, stages: Stages, assigned: Assigned | RangeAssigned, body: bytes
    ) -> Response | Awaitable[Response]:
        response = Response(200, body, headers=_SUCCESS)
        if self._durable is not None:
            return self._guard(self._reply_durable((assigned,), response, stages), invocation.config, stages)
        return self._done(stages, response)

    def _delete(self, invocation: Invocation, stages: Stages) -> Response:
        began = self._elapsed()
        decided = self._ledger.delete(
            invocation.attachment,
            cni.older_handle(invocation),
            invocation.started,
            from_pools=not hostlocal.serves(invocation.config),
        )
        stages.decide = self._elapsed() - began
        if decided.facts:
            self._give_up(decided.facts, stages)
        # It ends the wait of an ADD that it overtook; only now, as what that may decide comes after it in a replay.
        self._waiting.serve(invocation.attachment)
        # Whatever ``durability`` says, a DEL waits for nothing: what a power cut makes of it ends the pod as well, and
        # without the store no pod must hang in Terminating.
        return self._done(stages, Response(200, headers=_SUCCESS))

    def _collect(self, invocation: Invocation, stages: Stages) -> Response:
        valid = cni.valid_attachments(invocation.config)
        began = self._elapsed()
        facts = collect(self._ledger, invocation.config.name, valid, self._now())
        stages.decide = self._elapsed() - began
        if facts:
            self._give_up(facts, stages)
        return self._done(stages, Response(200, headers=_SUCCESS))

    def _check(self, invocation: Invocation) -> Response:
        confirm(self._ledger, invocation.attachment, cni.previous_addresses(invocation.config))
        return Response(200, headers=_SUCCESS)

    def _status(self, config: NetworkConfig) -> Response:
        reason = self._range_reason(config) if hostlocal.serves(config) else self.ready()
        if reason:
            raise RefusedError(Code.NOT_AVAILABLE, f"cannot serve ADD: {reason}")
        return Response(200, headers=_SUCCESS)

    def _range_reason(self, config: NetworkConfig) -> str:
        try:
            hostlocal.read_plan(config, self._ask_cidrs)
        except RefusedError as error:
            return error.msg
        return self.able()

    # --- the steps they share ---------------------------------------------------------------------------------

    def _give_up(self, facts: Sequence[Fact], stages: Stages) -> None:
        try:
            self._persist(facts, stages)
        except NotDurableError:
            # A full disk must not keep a pod from going: the release is in memory and will reach the store. Only if
            # the daemon is killed before there is room again does it hold the address once more, until it is collected.
            self._owe(facts)
            self._wake()

    def _persist(self, facts: Sequence[Fact], stages: Stages) -> None:
        began = self._elapsed()
        self._append(facts)
        stages.journal = self._elapsed() - began
        self._wake()

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

    async def _reply_durable(self, facts: Sequence[Fact], response: Response, stages: Stages) -> Response:
        if self._durable is not None:
            try:
                await self._durable(facts)
            except NotDurableError as error:
                raise RefusedError(Code.IO_FAILURE, str(error)) from error
        return self._done(stages, response)

    async def _guard(self, work: Awaitable[Response], config: NetworkConfig, stages: Stages) -> Response:
        try:
            return await work
        except RefusedError as error:
            return self._refuse(config.cniVersion, stages, error)

    def _done(self, stages: Stages, response: Response) -> Response:
        stages.total = self._elapsed() - stages.began
        self._observe(stages, 0)
        return response

    def _refuse(self, version: str, stages: Stages, error: RefusedError) -> Response:
        stages.total = self._elapsed() - stages.began
        self._observe(stages, error.code)
        return Response(STATUS.get(error.code, 400), error_object(version, error), headers=_FAILURE)
