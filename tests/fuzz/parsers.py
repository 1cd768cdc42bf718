"""Every parser of bytes that others wrote, on damaged samples from a seed: it may raise what it declares, no more."""

import random
import re
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

from ipamd.api import asked, cni, hostlocal
from ipamd.api.http import BadRequestError, Parser, Request
from ipamd.api.resolv import Dns, parse_dns
from ipamd.api.result import ResultAddress, encode, error_object, result
from ipamd.api.spool import Spool
from ipamd.core import keys
from ipamd.core.clock import Now
from ipamd.core.errors import RefusedError
from ipamd.core.facts import RangeAssigned
from ipamd.core.pod import ADDRESSES, POOLS, pod_facts
from ipamd.core.pool import decode_pool
from ipamd.core.records import (
    BlockRecord,
    HandleRecord,
    RecordError,
    affinity_record,
    affinity_state,
    cluster_guid,
    datastore_locked,
    decode_config,
    handle_blocks,
    node_labels,
    pressure_at,
    pressure_record,
    reserved_cidrs,
)
from ipamd.core.selector import SelectorError, parse_labels, parse_selector
from ipamd.journal.format import describe, frame, scan
from ipamd.kubernetes.access import Credentials, kubeconfig
from ipamd.kubernetes.errors import ApiError, NonsenseError
from ipamd.kubernetes.objects import Event, Listing, Node, Object, decode
from ipamd.runtime.results import read_results
from tests.core.captured import captured
from tests.fuzz.hostile import TEXTS, Hostile, damage
from tests.journal.examples import EACH_KIND, state
from tests.runtime.results import cached

NOW = Now(1_795_218_460_000_000_000, 1_000_000_000)


class Target(Struct, frozen=True):
    """A parser: sound input, what reads it and uses what was read, and the exceptions that it declares."""

    samples: Sequence[bytes]
    read: Callable[[bytes], object]
    declared: tuple[type[Exception], ...] = ()


class Outcome(Struct):
    """Inputs and refusals by parser, the time it all took, and what was raised that is not declared."""

    inputs: dict[str, int]
    refused: dict[str, int]
    seconds: float
    findings: list[str]


def run(seed: int, inputs: int) -> Outcome:
    """Give the parsers this many inputs, in turns."""
    dice = random.Random(seed)  # noqa: S311 - a failing seed must repeat
    every = targets(seed)
    outcome = Outcome(dict.fromkeys(every, 0), dict.fromkeys(every, 0), 0.0, [])
    began = time.monotonic()
    for number in range(inputs):
        name = list(every)[number % len(every)]
        target = every[name]
        data = _input(dice, target.samples)
        outcome.inputs[name] += 1
        try:
            target.read(data)
        except target.declared:
            outcome.refused[name] += 1
        except Exception:  # noqa: BLE001 - what escapes a parser is what is looked for
            outcome.findings.append(f"{name}, seed {seed}, input {number}: {data!r}\n{traceback.format_exc()}")
    outcome.seconds = time.monotonic() - began
    return outcome


def _input(dice: random.Random, samples: Sequence[bytes]) -> bytes:
    """A sound sample, a damaged one, or two grown together."""
    data = dice.choice(samples)
    roll = dice.random()
    if roll < 0.1:
        return data
    if roll < 0.2:
        other = dice.choice(samples)
        data = data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]
    elif roll < 0.21:
        depth = dice.choice((100, 985, 993, 1000, 3000))
        data = data.replace(dice.choice((b"{", b"[", b":", b"(")), b"[" * depth, 1)
    elif roll < 0.3:
        data = data.replace(dice.choice((b"1", b"a", b"/", b'"')), dice.choice(TEXTS).encode(), 1)
    return damage(dice, data)


def _records(kind: keys.Kind) -> list[bytes]:
    return [value for _name, _key, value in captured(kind)]


def targets(seed: int) -> dict[str, Target]:
    """Every parser, with sound input that may be drawn from the seed."""
    requests = _requests(seed)
    bodies = [request.partition(b"\r\n\r\n")[2] for request in requests if request.startswith(b"POST /v1/cni")]
    record = (RecordError,)
    return {
        "selector": Target(SELECTORS, _selector, (SelectorError, UnicodeDecodeError)),
        "labels": Target([b"rack=0,zone=b", b"a/b.c=", b""], lambda data: parse_labels(data.decode()), (ValueError,)),
        "block": Target(_records(keys.Kind.BLOCK), _block, record),
        "handle": Target(_records(keys.Kind.HANDLE), _handle, record),
        "affinity": Target(
            _records(keys.Kind.AFFINITY), lambda data: affinity_record(affinity_state(data), data), record
        ),
        "pool": Target(_records(keys.Kind.POOL), _pool, record),
        "reservation": Target(_records(keys.Kind.RESERVATION), reserved_cidrs, record),
        "configuration": Target(_records(keys.Kind.CONFIG), lambda data: decode_config(data).block_limit, record),
        "cluster": Target([*_records(keys.Kind.CLUSTER_INFORMATION), CLUSTER], _cluster, record),
        "node": Target([b'{"metadata":{"labels":{"rack":"0"}}}', b'{"metadata":{}}'], node_labels, record),
        "pressure": Target([pressure_record("node-a", NOW.unix)], pressure_at),
        "state file": Target([state(EACH_KIND), state(EACH_KIND[:3], EACH_KIND[3:])], describe),
        "sound records": Target([frame([fact])[12:] for fact in EACH_KIND], lambda data: scan(_sealed(data), 0)),
        "http": Target(requests, _http, (BadRequestError,)),
        "cni": Target(bodies, _call, (RefusedError,)),
        "resolv.conf": Target([b"nameserver 1.2.3.4\nsearch a b\ndomain c\noptions ndots:5\n"], _dns),
        "annotations": Target([b'["pool-a","10.0.0.0/16"]', b'["10.0.0.1","fd00::1"]'], _annotations),
        "kubernetes": Target(KUBERNETES, _kubernetes, (NonsenseError,)),
        "kubeconfig": Target([KUBECONFIG], _kubeconfig, (ApiError,)),
        "cached results": Target(_results(), lambda data: read_results(_file(data).parent)),
        "kept DELs": Target([request for request in requests if b"DEL" in request], _kept),
    }


SELECTORS = (
    b"rack == \"0\" && !has(spare) || zone in {'a', 'b'}",
    b"!(all() && has(a/b.c)) || x not in {} && y contains 'z'",
    b'a starts with "b" || global()',
)
CLUSTER = b'{"spec":{"datastoreReady":false,"clusterGUID":"abc"}}'
SEQUENCE = re.compile(rb'"sequenceNumber":\d+')
"""Of a block: each write of it counts."""
KUBERNETES = (
    b'{"metadata":{"name":"web","namespace":"default","uid":"1","labels":{"a":"b"},"annotations":{"c":"d"}}}',
    b'{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"web"}}]}',
    b'{"type":"ADDED","object":{"metadata":{"name":"web"}}}',
    b'{"spec":{"podCIDR":"10.0.0.0/24","podCIDRs":["10.0.0.0/24"]}}',
)


KUBECONFIG = b"""\
clusters: [{name: a, cluster: {server: "https://b", certificate-authority-data: "YQ=="}}]
users: [{name: u, user: {tokenFile: t, client-certificate: c, token: "1"}}]
contexts:
- name: a
  context: {cluster: a, user: u}
current-context: a
preferences: {since: 2001-02-03, x: 1.5e3, y: !!int 5, z: !!binary "YQ==", null: ~, <<: {}}
"""


def _results() -> list[bytes]:
    """What the runtime's cache says of containers, in an old version and a new one."""
    made = [
        cached(_directory() / "made", "c1", ["10.0.0.1", "fd00::1"], version=version) for version in ("0.2.0", "1.0.0")
    ]
    return [path.read_bytes() for path in made]


@cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="ipamd-fuzz-")


def _directory() -> Path:
    return Path(_scratch().name)


def _file(data: bytes) -> Path:
    """A file of its own directory, with these contents."""
    path = _directory() / "files" / "file"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def _kubeconfig(data: bytes) -> None:
    Credentials(kubeconfig(_file(data))).current()


def _kept(data: bytes) -> None:
    path = _file(data)
    Spool(
        path.parent,
        "boot",
        lambda request, _peer: request.headers["cni-command"],
        lambda: True,
        lambda: 0,
        lambda *_: None,
    ).carry_out()
    if path.exists():
        raise AssertionError("a file stays among the kept DELs")


def _requests(seed: int) -> list[bytes]:
    hostile = Hostile(seed)
    return [piece for _ in range(200) for piece in hostile.batch().pieces]


def _selector(data: bytes) -> None:
    parse_selector(data.decode()).matches({"rack": "0"})


def _block(data: bytes) -> None:
    record = BlockRecord(data)
    _ = record.claimed_at, record.deleted, [record.owner(ordinal) for ordinal in range(record.cidr.size)]
    written = record.encode()
    _same(BlockRecord(written).encode(), written)


def _handle(data: bytes) -> None:
    handle_blocks(data)
    if (written := HandleRecord(data).encode()) is not None:
        _same(HandleRecord(written).encode(), written)


def _same(again: bytes | None, written: bytes) -> None:
    """What we write reads as what we wrote."""
    if SEQUENCE.sub(b"", again or b"") != SEQUENCE.sub(b"", written):
        raise AssertionError(f"{written!r} is written as {again!r} after it was read")


def _pool(data: bytes) -> None:
    pool = decode_pool(data)
    pool.enclosing(pool.block(pool.blocks - 1))
    pool.node_selector.matches({}) if not pool.unreadable else None


def _cluster(data: bytes) -> None:
    datastore_locked(data)
    cluster_guid(data)


def _sealed(body: bytes) -> bytes:
    """A record with right checksums around what was damaged."""
    head = len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little")
    return head + zlib.crc32(head).to_bytes(4, "little") + body


def _http(data: bytes) -> None:
    parser = Parser(32768, 1 << 20)
    for at in range(0, len(data), 1 + len(data) // 3):
        parser.feed(data[at : at + 1 + len(data) // 3])
        while parser.next() is not None:
            pass


def _call(data: bytes) -> None:
    """What each verb reads of a configuration, and the answer to it."""
    fields = {"cni-containerid": "c", "cni-netns": "n", "cni-ifname": "eth0", "cni-path": "/x", "cni-args": ""}
    request = Request("POST", "/v1/cni", "", {**fields, "cni-command": "ADD"}, data, keep_alive=True)
    config = cni.read_config(request)
    invocation = cni.read_invocation(request, config, NOW.boot)
    refusals = []
    for read in (
        _add,
        lambda call: cni.previous_addresses(call.config),
        lambda call: cni.valid_attachments(call.config),
    ):
        try:
            read(invocation)
        except RefusedError as error:
            error_object(config.cniVersion, error)
            refusals.append(error)
    if len(refusals) == 3:
        raise refusals[0]


def _add(invocation: cni.Invocation) -> None:
    config = invocation.config
    if not hostlocal.serves(config):
        asked.add_request(invocation)
        result(config, [ResultAddress(4, "10.0.0.1", 26), ResultAddress(6, "fd00::1", 122)])
        return
    plan = hostlocal.read_plan(config, lambda: ("10.8.0.0/24",))
    hostlocal.range_request(invocation, plan)
    first = tuple("fd09::2" if ranges[0].family == 6 else "10.9.0.2" for ranges in plan.sets)
    hostlocal.answer(config, plan, RangeAssigned(invocation.attachment, first, {}, 0, 0), Dns())


def _dns(data: bytes) -> None:
    encode("1.0.0", [], [], parse_dns(data.decode(errors="replace")))


def _annotations(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    facts = pod_facts("default/web", dict.fromkeys((*POOLS.values(), ADDRESSES), text), {POOLS[4]: text}, {})
    msgspec.json.encode(facts.problem)


def _kubernetes(data: bytes) -> None:
    refusals = []
    for kind in (Object, Listing, Event, Node):
        try:
            decoded = decode(data, kind)
            if isinstance(decoded, Event):
                decode(decoded.object, Object)
        except NonsenseError as error:
            refusals.append(error)
    if len(refusals) == 4:
        raise refusals[0]
