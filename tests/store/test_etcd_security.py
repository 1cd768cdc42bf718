"""TLS, certificates that are replaced, user and password, permissions."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from ipamd.store.base import Change, Event, StoreRefusedError, StoreUnavailableError
from ipamd.store.etcd import EtcdSettings, EtcdStore
from ipamd.store.hold import Hold
from tests.etcd_process import EtcdProcess

pytestmark = pytest.mark.real


class Files:
    """A CA, and a certificate for both sides, in files that ``issue`` replaces by those of a new CA."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"

    def issue(self) -> "Files":
        """Write new ones, each file replaced in one step."""
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1", "localhost")
        contents = {
            self.ca: authority.cert_pem.bytes(),
            self.cert: b"".join(blob.bytes() for blob in issued.cert_chain_pems),
            self.key: issued.private_key_pem.bytes(),
        }
        for path, content in contents.items():
            new = path.with_suffix(".new")
            new.write_bytes(content)
            new.replace(path)
        return self


def settings_with(files: Files, endpoint: str) -> EtcdSettings:
    """Settings that show and check certificates."""
    return EtcdSettings(
        endpoints=(endpoint,),
        ca_file=str(files.ca),
        cert_file=str(files.cert),
        key_file=str(files.key),
        timeout=3.0,
    )


async def eventually_read(store: EtcdStore, key: str) -> None:
    """Read until it succeeds."""
    with trio.fail_after(5):
        while True:
            try:
                await store.read([key])
            except StoreUnavailableError:
                await trio.sleep(0.05)
            else:
                return


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_tls_with_client_certificates(tmp_path: Path, host: str) -> None:
    """An etcd that demands certificates is used by address and by name; one that is not trusted is not used."""
    files = Files(tmp_path).issue()
    with EtcdProcess(tmp_path / "etcd", tls=(files.ca, files.cert, files.key)) as process:
        endpoint = process.endpoint.replace("127.0.0.1", host)
        store = EtcdStore(settings_with(files, endpoint))
        assert (await store.commit([Change("/a", b"1", 0)])).chosen == 0
        assert process.ctl("get", "/a", "--print-value-only") == "1\n"
        await store.aclose()
        (tmp_path / "other").mkdir()
        stranger = EtcdStore(settings_with(Files(tmp_path / "other").issue(), endpoint))
        with pytest.raises(StoreUnavailableError, match=r"(?i)certificate|ssl|handshake"):
            await stranger.read(["/a"])
        await stranger.aclose()


async def test_replaced_certificates_are_used_without_a_restart(tmp_path: Path) -> None:
    """When etcd and the files move to a new CA, calls and the watch go on with the new certificates."""
    files = Files(tmp_path).issue()
    with EtcdProcess(tmp_path / "etcd", tls=(files.ca, files.cert, files.key)) as process:
        store = EtcdStore(settings_with(files, process.endpoint))
        async with store.watch() as watch:
            watch.add("/a", (await store.read([])).revision)
            files.issue()
            process.restart()
            await eventually_read(store, "/a")
            revision = (await store.commit([Change("/a", b"1", 0)])).revision
            with trio.fail_after(5):
                assert await anext(aiter(watch)) == [Event("/a", b"1", revision)]
        await store.aclose()


async def test_replaced_certificates_break_no_call_while_the_old_ones_still_work(tmp_path: Path) -> None:
    """Replacing the client's files while calls are under way makes none of them fail."""
    files, server = Files(tmp_path).issue(), Files(tmp_path / "server")
    (tmp_path / "server").mkdir()
    for mine, theirs in ((files.ca, server.ca), (files.cert, server.cert), (files.key, server.key)):
        theirs.write_bytes(mine.read_bytes())
    with EtcdProcess(tmp_path / "etcd", tls=(server.ca, server.cert, server.key)) as process:
        store = EtcdStore(settings_with(files, process.endpoint))
        first = await store._session.link()  # looks inside: that the files were taken up shows nowhere else

        await store.read(["/a"])
        process.pause()
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(store.read, ["/a"])
            await trio.testing.wait_all_tasks_blocked(0.05)
            with trio.fail_after(1.5):  # less than the calls' deadline
                while await store._session.link() is first:
                    os.utime(files.cert)
                    await trio.sleep(0.02)
            process.resume()
        await store.aclose()


async def test_a_certificate_file_that_is_missing_is_named(tmp_path: Path) -> None:
    """A TLS file that cannot be read is refused by its name, and taken once it is there."""
    files = Files(tmp_path)
    store = EtcdStore(settings_with(files, "https://127.0.0.1:1"))
    with pytest.raises(StoreRefusedError, match=r"cannot read .*ca\.pem: No such file"):
        await store.read(["/a"])
    files.issue()
    with pytest.raises(StoreUnavailableError, match="refused"):
        await store.read(["/a"])
    await store.aclose()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """An etcd with authentication: root, and ``node`` who may use /calico/ only; tokens live two seconds."""
    folder = tmp_path_factory.mktemp("guarded")
    with EtcdProcess(folder, options=["--auth-token-ttl=2"]) as process:
        process.ctl("user", "add", "root:secret")
        process.ctl("user", "grant-role", "root", "root")
        process.ctl("role", "add", "node")
        process.ctl("role", "grant-permission", "node", "readwrite", "/calico/", "--prefix")
        process.ctl("user", "add", "node:pass")
        process.ctl("user", "grant-role", "node", "node")
        process.ctl("auth", "enable")
        process.user = "root:secret"
        yield process


def login(process: EtcdProcess, folder: Path, password: str = "pass\n") -> EtcdSettings:  # noqa: S107 - of a test
    """Settings of the user ``node``."""
    path = folder / "password"
    path.write_text(password)
    return EtcdSettings(endpoints=(process.endpoint,), username="node", password_file=str(path), timeout=3.0)


async def test_calls_and_watches_renew_a_token_that_expired(guarded: EtcdProcess, tmp_path: Path) -> None:
    """Calls work with user and password, many at once also after the token expired; so does opening a watch."""
    caller, watcher = EtcdStore(login(guarded, tmp_path)), EtcdStore(login(guarded, tmp_path))
    await caller.read(["/calico/a"])
    revision = (await watcher.read(["/calico/a"])).revision
    await trio.sleep(3.5)  # etcd's own clock: tokens cannot be made to expire otherwise
    async with watcher.watch() as watch:
        watch.add("/calico/", revision, prefix=True)
        written = await caller.commit([Change("/calico/a", b"1", 0)])
        with trio.fail_after(5):
            assert await anext(aiter(watch)) == [Event("/calico/a", b"1", written.revision)]
    await watcher.aclose()
    await trio.sleep(3.5)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(caller.read, ["/calico/a"])
    await caller.aclose()


async def test_what_the_user_may_not_do_is_refused(guarded: EtcdProcess, tmp_path: Path) -> None:
    """Keys outside the user's permission are refused, by call and by watch, with the reason."""
    store = EtcdStore(login(guarded, tmp_path))
    with pytest.raises(StoreRefusedError, match="permission denied; grant"):
        await store.read(["/other"])
    assert store.connected
    async with store.watch() as watch:
        watch.add("/other", 1)
        with trio.fail_after(5), pytest.raises(StoreRefusedError, match="cannot watch /other"):
            await anext(aiter(watch))
    await store.aclose()


async def test_a_user_of_calicos_keys_may_read_the_revision(guarded: EtcdProcess, tmp_path: Path) -> None:
    """Reading nothing but the revision, as a node's first look without blocks does, needs no other permission."""
    store = EtcdStore(login(guarded, tmp_path))
    written = await store.commit([Change("/calico/revision", b"1", 0)])
    assert (await store.read([])).revision == written.revision
    await store.aclose()


async def test_a_user_of_calicos_keys_may_hold_one(guarded: EtcdProcess, tmp_path: Path) -> None:
    """Leases need no permission but that for the keys that are bound to them."""
    store = EtcdStore(login(guarded, tmp_path))
    hold = Hold(store, "/calico/ipamd/held", 60)
    assert await hold.take(b"mine")
    assert await hold.renew() is not None
    assert hold.held
    await hold.release()
    assert (await store.read(["/calico/ipamd/held"])).records == ()
    await store.aclose()


async def test_a_wrong_password_is_refused_until_the_file_is_right(guarded: EtcdProcess, tmp_path: Path) -> None:
    """A wrong password is refused in words; the corrected file is read at the next call."""
    store = EtcdStore(login(guarded, tmp_path, "wrong"))
    with pytest.raises(StoreRefusedError, match="check username and password_file"):
        await store.read(["/calico/a"])
    (tmp_path / "password").write_text("pass")
    await store.read(["/calico/a"])
    (tmp_path / "password").unlink()
    await store.aclose()


async def test_no_login_where_one_is_needed(guarded: EtcdProcess) -> None:
    """Without user and password an etcd with authentication refuses, and the error says what to configure."""
    store = EtcdStore(EtcdSettings(endpoints=(guarded.endpoint,)))
    with pytest.raises(StoreRefusedError, match="configure username and password_file"):
        await store.read(["/calico/a"])
    await store.aclose()


async def test_a_login_that_etcd_does_not_ask_for(etcd: EtcdProcess, tmp_path: Path) -> None:
    """User and password configured for an etcd without authentication do no harm."""
    store = EtcdStore(login(etcd, tmp_path))
    await store.read(["/calico/a"])
    await store.aclose()
