"""TLS to an API server on a real socket: who is trusted, who is shown, and certificates that are replaced."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trustme

from ipamd.kubernetes.access import Access, Credentials, Files, Tls
from ipamd.kubernetes.client import Client
from ipamd.kubernetes.cluster import Cluster
from ipamd.kubernetes.errors import ApiError
from tests.kubernetes_server import ApiServer, ApiServerThread, Json, namespace, pod


class Authority:
    """A CA that an API server believes, and the files of a client that it does."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self._folder = folder

    def server(self) -> ssl.SSLContext:
        """The server's side: it demands a client's certificate."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.verify_mode = ssl.CERT_REQUIRED
        self.ca.issue_cert("127.0.0.1").configure_cert(context)
        self.ca.configure_trust(context)
        return context

    def issue(self, client: "Authority | None" = None) -> None:
        """Write the client's files, each in one step, its certificate by another authority if one is given."""
        issued = (client or self).ca.issue_cert("node-a@example.org")
        self._write("ca", self.ca.cert_pem.bytes())
        self._write("cert", b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self._write("key", issued.private_key_pem.bytes())

    def _write(self, name: str, content: bytes) -> None:
        new = self._folder / "new"
        new.write_bytes(content)
        new.replace(self._folder / name)

    def client(self, url: str) -> Client:
        """A client that reads these files."""

        def load(files: Files) -> Access:
            return Access(url, "", Tls(*(files.read(self._folder / name) for name in ("ca", "cert", "key"))))

        return Client(Credentials(load))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """With the client's files written."""
    made = Authority(tmp_path)
    made.issue()
    return made


@pytest.fixture
def api(authority: Authority) -> Iterator[ApiServerThread]:
    """A server with TLS."""
    with ApiServerThread(lambda: ApiServer(namespace("default")), authority.server()).running() as thread:
        yield thread


async def put(api: ApiServerThread, each: Json) -> None:
    """Make an object, in the server's thread."""
    await trio.to_thread.run_sync(api.do, lambda server: server.put(each))


async def test_both_sides_show_certificates(authority: Authority, api: ApiServerThread) -> None:
    """The server's is checked, the client's is shown."""
    client = authority.client(api.url)
    assert b"uid-of-default" in await client.get("/api/v1/namespaces/default")
    await client.aclose()


async def test_a_server_of_another_authority_is_not_asked(tmp_path: Path, api: ApiServerThread) -> None:
    """No request reaches it; the error says why."""
    folder = tmp_path / "other"
    folder.mkdir()
    stranger = Authority(folder)
    stranger.issue()
    client = stranger.client(api.url)
    with pytest.raises(ApiError, match=r"cannot be reached \(.*certificate verify failed"):
        await client.get("/api/v1/namespaces/default")
    assert not api.server.calls
    await client.aclose()


async def test_a_server_by_another_name_is_not_asked(authority: Authority, api: ApiServerThread) -> None:
    """Its certificate is for its address: another name for the same server is not it."""
    client = authority.client(api.url.replace("127.0.0.1", "localhost"))
    with pytest.raises(ApiError, match=r"cannot be reached \(.*localhost"):
        await client.get("/api/v1/namespaces/default")
    await client.aclose()


async def test_a_replaced_certificate_is_used_for_new_and_running_calls(
    tmp_path: Path, authority: Authority, api: ApiServerThread
) -> None:
    """A certificate that the server does not take, then one that it does: the watches resume by themselves."""
    folder = tmp_path / "other"
    folder.mkdir()
    authority.issue(client=Authority(folder))
    reports: list[str] = []
    cluster = Cluster(authority.client(api.url), "node-a", 1.0, lambda _event, values: reports.append(values["error"]))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.run)
            while not reports:
                await trio.sleep(0.01)
            authority.issue()
            while not cluster.connected:
                await trio.sleep(0.01)
            await put(api, pod("web", "u1"))
            while cluster.pod("default", "web", "u1") is None:
                await trio.sleep(0.01)
            authority.issue()
            await cluster.fetch("default", "web", "u1")  # on a new connection, which ends those of the watches
            await put(api, pod("new", "u2"))
            while cluster.pod("default", "new", "u2") is None:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
