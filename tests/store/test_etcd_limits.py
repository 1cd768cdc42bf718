"""What etcd refuses, what the settings refuse, and what importing the store costs."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from ipamd.store.base import Change, StoreRefusedError
from ipamd.store.etcd import EtcdSettings, EtcdStore
from ipamd.store.etcd.messages import prefix_end
from ipamd.store.etcd.settings import Endpoint, parse_endpoint
from tests.etcd_process import EtcdProcess


@pytest.mark.real
async def test_an_etcd_without_space_refuses_writes_and_serves_reads(tmp_path: Path) -> None:
    """When etcd's quota is used up, commits are refused with what to do; reads go on."""
    with EtcdProcess(tmp_path, options=["--quota-backend-bytes=300000"]) as process:
        store = EtcdStore(EtcdSettings(endpoints=(process.endpoint,)))
        value = b"x" * 100_000

        async def fill() -> None:  # etcd takes note of its size ten times a second
            for n in itertools.count():
                await store.commit([Change(f"/a/{n}", value, 0)])

        with trio.fail_after(10), pytest.raises(StoreRefusedError, match="database space exceeded; compact and"):
            await fill()
        snapshot = await store.read(["/a/0", "/a/1", "/b"], ["/a/"])
        assert [record.key for record in snapshot.records][:2] == ["/a/0", "/a/1"]
        assert {record.revision <= snapshot.revision for record in snapshot.records} == {True}
        assert await store.read(["/a/0", "/a/1", "/b"], ["/a/"]) == snapshot
        assert store.connected
        await store.aclose()


@pytest.mark.real
async def test_too_many_or_too_large_changes_are_refused(etcd: EtcdProcess) -> None:
    """A set that exceeds etcd's limits is refused in words, and nothing of it is written."""
    store = EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,)))
    with pytest.raises(StoreRefusedError, match="too many operations"):
        await store.commit([Change(f"/many/{n}", b"", 0) for n in range(129)])
    for size in (600_000, 1_600_000):
        with pytest.raises(StoreRefusedError, match=r"larger?.*send fewer changes"):
            await store.commit([Change(f"/large/{n}", b"x" * size, 0) for n in range(3)])
    assert (await store.read([], ["/many/", "/large/"])).records == ()
    await store.aclose()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"endpoints": ()}, "no endpoints"),
        ({"endpoints": ("10.0.0.1:2379",)}, "not a plain URL"),
        ({"endpoints": ("http://10.0.0.1:port",)}, "port"),
        ({"endpoints": ("http://a", "https://b")}, "both http and https"),
        ({"endpoints": ("http://a",), "ca_file": "/ca"}, "write the endpoints as https"),
        ({"endpoints": ("https://a",), "cert_file": "/cert"}, "without its key"),
        ({"endpoints": ("https://a",), "username": "me"}, "half of a login"),
        ({"endpoints": ("https://a",), "timeout": 0}, "seconds above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments: dict[str, object], says: str) -> None:
    """Settings that do not fit together are refused where they are made, with what to write instead."""
    with pytest.raises(ValueError, match=says):
        EtcdSettings(**arguments)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://10.0.0.1:2379", "ipv4:10.0.0.1:2379"),
        ("http://10.0.0.1", "ipv4:10.0.0.1:2379"),
        ("https://[fd00::1]:4001/", "ipv6:[fd00::1]:4001"),
        ("https://etcd.example", "dns:///etcd.example:2379"),
    ],
)
def test_endpoints_as_targets(url: str, target: str) -> None:
    """Only names go to the resolver; the port may be left out."""
    assert parse_endpoint(url) == Endpoint(url, target, url.startswith("https"))


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"/a/", b"/a0"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), ("é".encode(), b"\xc3\xaa")]
)
def test_end_of_a_prefix(prefix: bytes, end: bytes) -> None:
    """The range of a prefix ends with the first key that cannot begin with it."""
    assert prefix_end(prefix) == end


def run(program: str) -> None:
    """Run a Python program in a process of its own; it asserts by itself."""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


def test_importing_the_store_imports_neither_grpc_nor_protobuf() -> None:
    """The daemon can listen before grpc is loaded: the store's import does not pull it in."""
    run(
        "import sys; from ipamd.store.etcd import EtcdSettings, EtcdStore;"
        "EtcdStore(EtcdSettings(endpoints=('http://127.0.0.1:1',)));"
        "assert not {'grpc', 'google.protobuf', 'etcd3'} & set(sys.modules)"
    )


def test_the_stubs_use_the_fast_protobuf_and_leave_others_alone() -> None:
    """The stubs load on the installed C implementation; other users' ``rpc.proto`` still fits in the default pool."""
    run(
        "from ipamd.store.etcd.rpc import load; from google.protobuf.internal import api_implementation as api;"
        "pb = load(); assert api.Type() != 'python', api.Type(); assert pb is load();"
        "from google.protobuf import descriptor_pb2, descriptor_pool;"
        "mine = descriptor_pb2.FileDescriptorProto(name='rpc.proto', package='etcdserverpb');"
        "mine.message_type.add(name='RangeRequest');"
        "descriptor_pool.Default().Add(mine);"
        "assert pb.RangeRequest(key=b'a', limit=3).SerializeToString() == b'\\n\\x01a\\x18\\x03'"
    )


def test_threads_that_grpc_blocks_sleep_until_there_is_something() -> None:
    """By itself gRPC has them look ten times a second; it heeds what the stubs say of how long."""
    run(
        "from ipamd.store.etcd.rpc import LONGEST_SLEEP, load; load();"
        "import grpc._common; slept = [];"
        "grpc._common.wait(lambda timeout: slept.append(timeout), lambda: bool(slept));"
        "assert slept == [LONGEST_SLEEP], slept"
    )
