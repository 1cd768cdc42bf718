"""CNI requests, from the parsed HTTP request to its response: decide, make durable, reply.

On the way to the reply there is no store, no disk sync, no log line and no thread, unless ``durability`` asks for it;
only an ADD waits that finds the reserve empty, or would be refused for want of a pool, or whose pod Kubernetes has not
told of yet. ``decide`` and mutate happen in one step of the ledger; what follows before the reply is one write to the
journal.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ipamd.api import cni, hostlocal
from ipamd.api.access import Peer
from ipamd.api.asked import families_of
from ipamd.api.cni import Invocation, NetworkConfig
from ipamd.api.http import Request, Response
from ipamd.api.pool_add import PoolAdds
from ipamd.api.range_add import RangeAdds
from ipamd.api.steps import SUCCESS, Stages, Steps
from ipamd.api.waiting import Waiting
from ipamd.core.clock import Now
from ipamd.core.confirm import confirm
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Fact
from ipamd.core.garbage import collect
from ipamd.core.ledger import Ledger


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
        self._ledger, self._waiting, self._now = ledger, waiting, now
        self.steps = Steps(ledger, elapsed, append, owe, wake, observe, durable)
        self.pools = PoolAdds(ledger, waiting, now, self.steps)
        self.ranges = RangeAdds(ledger, now, self.steps)
        self.ready: Callable[..., str] = lambda *_families: ""
        """Why an ADD that wants an address of each of these IP versions could not be served now; "" if it could."""
        self.able: Callable[[], str] = lambda: ""
        """Why not even an ADD from host-local ranges could be, which needs neither pool nor store."""

    def cni(self, request: Request, _peer: Peer) -> Response | Awaitable[Response]:
        """Answer one call of the plugin."""
        arrival = self._now().boot
        stages = Stages(request.headers.get("cni-command", "?"), self.steps.elapsed())
        version = cni.VERSIONS[-1]
        try:
            config = cni.read_config(request)
            version = config.cniVersion
            invocation = cni.read_invocation(request, config, arrival)
            stages.queue = arrival - invocation.started
            stages.container = invocation.attachment.container
            match invocation.command:
                case "ADD":
                    return (self.ranges if hostlocal.serves(config) else self.pools).add(invocation, stages)
                case "DEL":
                    return self._delete(invocation, stages)
                case "CHECK":
                    return self.steps.done(stages, self._check(invocation))
                case "STATUS":
                    return self.steps.done(stages, self._status(config))
                case _:
                    return self._collect(invocation, stages)
        except RefusedError as error:
            return self.steps.refuse(version, stages, error)

    # --- verbs ------------------------------------------------------------------------------------------------

    def _delete(self, invocation: Invocation, stages: Stages) -> Response:
        began = self.steps.elapsed()
        decided = self._ledger.delete(
            invocation.attachment,
            cni.older_handle(invocation),
            invocation.started,
            from_pools=not hostlocal.serves(invocation.config),
            told=partial(cni.told_addresses, invocation.config),
        )
        stages.decide = self.steps.elapsed() - began
        if decided.facts:
            self.steps.give_up(decided.facts, stages)
        # Only now, as what this may decide comes after it in a replay.
        self._waiting.deleted(invocation.attachment)
        # Whatever ``durability`` says, a DEL waits for nothing: what a power cut makes of it ends the pod as well, and
        # without the store no pod must hang in Terminating.
        return self.steps.done(stages, Response(200, headers=SUCCESS))

    def _collect(self, invocation: Invocation, stages: Stages) -> Response:
        valid = cni.valid_attachments(invocation.config)
        began = self.steps.elapsed()
        facts = collect(self._ledger, invocation.config.name, valid, self._now())
        stages.decide = self.steps.elapsed() - began
        if facts:
            self.steps.give_up(facts, stages)
        return self.steps.done(stages, Response(200, headers=SUCCESS))

    def _check(self, invocation: Invocation) -> Response:
        confirm(self._ledger, invocation.attachment, cni.previous_addresses(invocation.config))
        return Response(200, headers=SUCCESS)

    def _status(self, config: NetworkConfig) -> Response:
        if hostlocal.serves(config):
            reason = self.ranges.reason(config) or self.able()
        else:
            reason = self.ready(*families_of(config))
        if reason:
            raise RefusedError(Code.NOT_AVAILABLE, f"cannot serve ADD: {reason}")
        return Response(200, headers=SUCCESS)
