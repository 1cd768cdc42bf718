"""The steps that the verbs share: write down, reply or refuse, and tell how long each took."""

from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from ipamd.api.cni import Invocation, NetworkConfig
from ipamd.api.http import Response
from ipamd.api.result import error_object
from ipamd.api.waiting import not_durable
from ipamd.core.errors import Code, NotDurableError, RefusedError
from ipamd.core.facts import Assigned, Fact, RangeAssigned
from ipamd.core.ledger import Ledger
from ipamd.core.request import Added, RangeAdded

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

SUCCESS = (("Ipamd-Exit", "0"),)
_FAILURE = (("Ipamd-Exit", "1"),)


class Stages(Struct):
    """How long one request and its stages took (ns), for the metrics: 0 where a stage did not happen.

    ``queue`` is from the plugin's start to the arrival here: its exec, its connect, and the wait for this daemon;
    ``wait`` is for an address, or for Kubernetes to tell of the pod. ``container`` is "" while no id was understood.
    """

    verb: str
    began: int
    total: int = 0
    queue: int = 0
    decide: int = 0
    journal: int = 0
    wait: int = 0
    container: str = ""


class Steps:
    """See the module; the parameters are those of ``Handlers``."""

    def __init__(
        self,
        ledger: Ledger,
        elapsed: Callable[[], int],
        append: Callable[[Sequence[Fact]], None],
        owe: Callable[[Sequence[Fact]], None],
        wake: Callable[[], None],
        observe: Callable[[Stages, int], None],
        durable: Callable[[Sequence[Fact]], Awaitable[None]] | None,
    ) -> None:
        self._ledger, self.elapsed, self._append, self._owe = ledger, elapsed, append, owe
        self._wake, self._observe, self._durable = wake, observe, durable
        self.catch_up: Callable[[], None] = lambda: None
        """Carries out the DELs that were kept while the daemon was away."""
        self.unwritten: Callable[[NotDurableError], None] = lambda _error: None
        """Is told that the state file cannot be written."""

    def persist_add(self, decided: Added | RangeAdded, stages: Stages) -> None:
        """Write an ADD to the state file; raises RefusedError, the ADD taken back, if that cannot be."""
        if decided.facts:
            try:
                self.persist(decided.facts, stages)
            except NotDurableError as error:
                raise not_durable(self._ledger, decided, error) from error

    def reply_add(
        self, invocation: Invocation, stages: Stages, assigned: Assigned | RangeAssigned, body: bytes
    ) -> Response | Awaitable[Response]:
        """Answer an ADD, after the wait that ``durability`` asks for."""
        response = Response(200, body, headers=SUCCESS)
        if self._durable is not None:
            return self.guard(self._reply_durable((assigned,), response, stages), invocation.config, stages)
        return self.done(stages, response)

    def give_up(self, facts: Sequence[Fact], stages: Stages) -> None:
        """Write releases to the state file, now or as soon as there is room."""
        try:
            self.persist(facts, stages)
        except NotDurableError:
            # A full disk must not keep a pod from going: the release is in memory and will reach the store. Only if
            # the daemon is killed before there is room again does it hold the address once more, until it is collected.
            self._owe(facts)
            self._wake()

    def persist(self, facts: Sequence[Fact], stages: Stages) -> None:
        """Write facts to the state file and wake the writer; raises NotDurableError."""
        began = self.elapsed()
        try:
            self._append(facts)
        except NotDurableError as error:
            self.unwritten(error)
            raise
        stages.journal = self.elapsed() - began
        self._wake()

    async def _reply_durable(self, facts: Sequence[Fact], response: Response, stages: Stages) -> Response:
        if self._durable is not None:
            try:
                await self._durable(facts)
            except NotDurableError as error:
                raise RefusedError(Code.IO_FAILURE, str(error)) from error
        return self.done(stages, response)

    async def guard(self, work: Awaitable[Response], config: NetworkConfig, stages: Stages) -> Response:
        """Answer what waits: refusals become replies here too."""
        try:
            return await work
        except RefusedError as error:
            return self.refuse(config.cniVersion, stages, error)

    def done(self, stages: Stages, response: Response) -> Response:
        """The end of a request that succeeded."""
        stages.total = self.elapsed() - stages.began
        self._observe(stages, 0)
        return response

    def refuse(self, version: str, stages: Stages, error: RefusedError) -> Response:
        """The end of a request that was refused."""
        stages.total = self.elapsed() - stages.began
        self._observe(stages, error.code)
        return Response(STATUS.get(error.code, 400), error_object(version, error), headers=_FAILURE)
