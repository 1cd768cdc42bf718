"""Calls of the CNI plugin as requests, and a daemon's request path around a ledger, without sockets or a store."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TypeVar

import trio

from ipamd.api.access import Peer
from ipamd.api.explain import Explain
from ipamd.api.handlers import Handlers
from ipamd.api.http import Request, Response
from ipamd.api.steps import Stages
from ipamd.api.tunnels import Tunnels
from ipamd.api.waiting import Waiting
from ipamd.core import keys
from ipamd.core.address import Cidr, parse_cidr
from ipamd.core.clock import Now
from ipamd.core.errors import NotDurableError
from ipamd.core.explain import Seen
from ipamd.core.facts import Committed, Fact
from ipamd.core.ledger import Ledger
from ipamd.core.reserve import ReservePolicy
from tests.core.blocks import image
from tests.nodes import pool_record

T = TypeVar("T")

ROOT = Peer(pid=1, uid=0, gid=0)
NODE = "n1"
RESERVE = f"ipamd-reserve-{NODE}"
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
}


def config(version: str = "1.0.0", **ipam: object) -> dict[str, object]:
    """A network configuration of a cluster with Calico's main plugin, or another ``ipam`` section."""
    return {"cniVersion": version, "name": "k8s-pod-network", "type": "calico", "ipam": {"type": "calico-ipam", **ipam}}


def call(body: object = None, environment: Mapping[str, str | None] | None = None, **changes: str | None) -> Request:
    """The request that the plugin sends; changes of the environment by name, None to leave one out."""
    variables = {**ENVIRONMENT, **(environment or {}), **changes}
    headers = {name.lower().replace("_", "-"): value for name, value in variables.items() if value is not None}
    raw = body if isinstance(body, bytes) else json.dumps(config() if body is None else body).encode()
    return Request("POST", "/v1/cni", "", headers, raw, keep_alive=False)


class Path:
    """The request path: what was called, in order, in ``log``; facts that reached the state file in ``journal``."""

    def __init__(self, *, durable: bool = False, deadline: float = 10.0) -> None:
        self.ledger = Ledger(NODE, ReservePolicy(minimum=4))
        self.ledger.synced = True
        self.log: list[str] = []
        self.journal: list[Fact] = []
        self.observed: list[tuple[Stages, int]] = []
        self.owed: list[Fact] = []
        self.full = False
        """Whether the disk is full: nothing reaches the state file."""
        self.revision = 0
        self.written = trio.Event()
        """Set by the test: the durability that was asked for has been reached."""
        self.waiting = Waiting(
            self.ledger, self.now, self.append, deadline, lambda: self.log.append("hurry"), lambda: "it is a test"
        )
        self.handlers = Handlers(
            self.ledger,
            self.waiting,
            self.now,
            lambda: 0,
            self.append,
            self.owed.extend,
            lambda: self.log.append("wake"),
            self._observe,
            self._durable if durable else None,
        )
        self.tunnels = Tunnels(
            self.ledger,
            self.waiting,
            self.now,
            self.append,
            self.owed.extend,
            lambda: self.log.append("wake"),
            self._find,
            self._durable if durable else None,
        )
        self.explain = Explain(self.ledger, self.now, lambda: "", lambda: "it is a test", self._look)
        self.looks: list[Cidr] = []
        """The blocks that the store was asked for, which it does not have."""
        self.obstacle = ""
        """Why the store cannot be asked."""
        self.commit(*pool_record("four", "10.0.0.0/16", blockSize=29))
        self.commit(*pool_record("six", "fd00::/64", blockSize=125))

    @staticmethod
    def now() -> Now:
        """Both clocks, the test's if it has one."""
        try:
            elapsed = int(trio.current_time() * 1e9)
        except RuntimeError:
            elapsed = 5_000_000_000
        return Now(1_795_218_460_000_000_000 + elapsed, elapsed + 1_000_000_000)

    def append(self, facts: Sequence[Fact]) -> None:
        """Write to the state file."""
        if self.full:
            raise NotDurableError("cannot write the state file: No space left on device; make room")
        self.log.append("append " + " ".join(type(fact).__name__ for fact in facts))
        self.journal.extend(facts)

    def _observe(self, stages: Stages, code: int) -> None:
        self.log.append(f"observe {code}")
        self.observed.append((stages, code))

    async def _find(self, handle: str) -> str:
        self.log.append(f"find {handle}")
        return self.obstacle

    async def _look(self, block: Cidr, _value: int) -> Seen:
        self.looks.append(block)
        return Seen(str(block))

    async def _durable(self, facts: Sequence[Fact]) -> None:
        self.log.append("durable begins " + " ".join(type(fact).__name__ for fact in facts))
        await self.written.wait()
        self.log.append("durable ends")

    def commit(self, key: str, value: bytes | None) -> None:
        """The store has a record."""
        self.revision += 1
        self.ledger.apply(Committed(key, self.revision, value))

    def supply(self, cidr: str, owners: Mapping[int, str] | int) -> None:
        """The store gives this node a block, with these owners or so many ordinals in reserve; who waits gets it."""
        held = dict.fromkeys(range(owners), RESERVE) if isinstance(owners, int) else owners
        self.commit(keys.block_key(parse_cidr(cidr)), image(cidr, held))
        self.waiting.serve()

    def ask(self, request: Request) -> Response:
        """Answer a request that need not wait."""
        response = self.handlers.cni(request, ROOT)
        assert isinstance(response, Response)
        return response

    async def answer(self, request: Request) -> Response:
        """Answer a request, waiting if need be."""
        response = self.handlers.cni(request, ROOT)
        return response if isinstance(response, Response) else await response

    def asked(self, *requests: Request) -> AbstractAsyncContextManager[list[Response]]:
        """Requests under way; their answers."""
        return under_way(*(partial(self.answer, request) for request in requests))


@asynccontextmanager
async def under_way(*calls: Callable[[], Awaitable[T]]) -> AsyncIterator[list[T]]:
    """Calls that wait: inside, all began a second ago; after it, all have returned. Yields what was returned, the first first."""
    returned: list[T] = []

    async def run(each: Callable[[], Awaitable[T]]) -> None:
        returned.append(await each())

    async with trio.open_nursery() as nursery:
        for each in calls:
            nursery.start_soon(run, each)
        await trio.sleep(1)
        yield returned


def error_of(response: Response) -> dict[str, object]:
    """The CNI error object of a failure."""
    assert ("Ipamd-Exit", "1") in response.headers
    answer = json.loads(response.body)
    assert isinstance(answer, dict)
    return answer


def addresses_of(response: Response) -> list[str]:
    """The addresses that an ADD was answered with (from version 0.3.0 on)."""
    assert ("Ipamd-Exit", "0") in response.headers, response.body
    return [each["address"] for each in json.loads(response.body)["ips"]]
