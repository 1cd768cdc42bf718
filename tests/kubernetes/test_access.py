"""Where the API server is and what it is shown: service accounts, kubeconfigs, tokens and certificates that change."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from trio.testing import MockClock

from ipamd.kubernetes.access import Access, Credentials, Tls, in_cluster, kubeconfig
from ipamd.kubernetes.client import Client, tcp
from ipamd.kubernetes.errors import ApiError
from tests.kubernetes.wire import Wire, until
from tests.kubernetes_server import ApiServer, namespace

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "6443"}


def replace(path: Path, text: str) -> None:
    """Write a file anew, in one step, as the kubelet and certificate managers do."""
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


def write(path: Path, **changes: Any) -> Path:
    """A kubeconfig as kubeadm writes them, in JSON, which is YAML; changes of cluster, user or the whole."""
    cluster = {"server": "https://api:6443", **changes.pop("cluster", {})}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "other", "cluster": {"server": "https://other"}}, {"name": "here", "cluster": cluster}],
        "users": [{"name": "me", "user": changes.pop("user", {"token": "secret"})}],
        "contexts": [{"name": "ctx", "context": {"cluster": "here", "user": "me", "namespace": "x"}}],
        "current-context": "ctx",
        "preferences": {},
        **changes,
    }
    path.write_text(json.dumps(config))
    return path


# --- a pod's service account ----------------------------------------------------------------------------------


def account(folder: Path) -> Path:
    """A service account's directory."""
    (folder / "token").write_text("first\n")
    (folder / "ca.crt").write_text("CA")
    return folder


@pytest.mark.parametrize(
    ("environ", "server"),
    [
        (POD, "https://10.96.0.1:6443"),
        ({"KUBERNETES_SERVICE_HOST": "fd00::1"}, "https://[fd00::1]:443"),
    ],
)
def test_a_pod_is_told_by_its_environment(tmp_path: Path, environ: dict[str, str], server: str) -> None:
    """The server's address, the token and the CA that Kubernetes puts into every pod."""
    assert Credentials(in_cluster(environ, account(tmp_path))).current() == Access(server, "first", Tls(b"CA"))


def test_outside_of_a_pod_there_is_no_service_account(tmp_path: Path) -> None:
    """Each thing that is missing is named, with what to do."""
    with pytest.raises(
        ApiError, match=r"^KUBERNETES_SERVICE_HOST is not set: not in a pod; set kubernetes.config to a"
    ):
        Credentials(in_cluster({})).current()
    with pytest.raises(ApiError, match=r"^cannot read .*/token: No such file or directory$"):
        Credentials(in_cluster(POD, tmp_path)).current()


def test_a_renewed_token_is_used(tmp_path: Path) -> None:
    """Kubernetes renews the file every hour; nothing else is read again meanwhile."""
    credentials = Credentials(in_cluster(POD, account(tmp_path)))
    first = credentials.current()
    assert credentials.current() is first
    replace(tmp_path / "token", "second")
    assert credentials.current().token == "second"
    (tmp_path / "token").unlink()
    with pytest.raises(ApiError, match="cannot read"):
        credentials.current()
    replace(tmp_path / "token", "third")
    assert credentials.current().token == "third"


# --- kubeconfig -----------------------------------------------------------------------------------------------


def test_a_kubeconfig_with_everything_inline(tmp_path: Path) -> None:
    """Its current context's server, and certificates in base64."""
    user = {name: base64.b64encode(name.encode()).decode() for name in ("client-certificate-data", "client-key-data")}
    cluster = {"certificate-authority-data": base64.b64encode(b"ca").decode()}
    loaded = Credentials(kubeconfig(write(tmp_path / "config", cluster=cluster, user=user))).current()
    tls = Tls(b"ca", b"client-certificate-data", b"client-key-data")
    assert loaded == Access("https://api:6443", "", tls)


def test_a_kubeconfig_with_files(tmp_path: Path) -> None:
    """Paths are relative to the kubeconfig; a file that changes is read again."""
    for name in ("ca.pem", "cert.pem", "key.pem", "token"):
        (tmp_path / name).write_text(name)
    user = {"client-certificate": "cert.pem", "client-key": str(tmp_path / "key.pem"), "tokenFile": "token"}
    path = write(tmp_path / "config", cluster={"certificate-authority": "ca.pem"}, user=user)
    credentials = Credentials(kubeconfig(path))
    assert credentials.current() == Access("https://api:6443", "token", Tls(b"ca.pem", b"cert.pem", b"key.pem"))
    replace(tmp_path / "cert.pem", "another")
    assert credentials.current().tls.cert == b"another"
    replace(path, write(tmp_path / "other", cluster={"server": "https://moved/"}).read_text())
    assert credentials.current() == Access("https://moved", "secret")


def test_a_kubeconfig_in_yaml(tmp_path: Path) -> None:
    """As people write it."""
    path = tmp_path / "config"
    path.write_text(
        "clusters:\n- name: a\n  cluster: {server: 'http://127.0.0.1:8080'}\n"
        "contexts:\n- name: a\n  context: {cluster: a}\n# anonymous\ncurrent-context: a\n"
    )
    assert Credentials(kubeconfig(path)).current() == Access("http://127.0.0.1:8080")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("clusters: [", "is no YAML that is understood; correct it"),
        ("a: &a [*a]", "missing required field `clusters`"),
        ("- 1", "Expected `object`, got `array`"),
        ("{}", "Object missing required field `clusters`"),
        ('{"clusters": [], "contexts": [], "current-context": ""}', "its current-context '' has no cluster"),
        ("!!python/object/apply:os.system [ls]", "line 1, column 1, is no YAML that is understood"),
        ("\x00", "control characters are not allowed"),
        ("since: 2001-99-99", "a value is no such date or number; quote it"),
        ("a: !!int b", "a value is no such date or number; quote it"),
        ("a: !!bool b", "a value is no such date or number; quote it"),
        ("a: !!timestamp b", "a value is no such date or number; quote it"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_named(tmp_path: Path, text: str, says: str) -> None:
    """The file and what is wrong with it, on one line; nothing in it is executed."""
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ApiError) as refused:
        Credentials(kubeconfig(path)).current()
    assert str(refused.value).startswith(f"cannot use kubeconfig {path}: ")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("loader", ["libyaml", "pure"])
@pytest.mark.parametrize(
    "text",
    ["token: SECRET: b", 'token: "SECRET\\q"', "token: *SECRET", "token: !!binary SECRET*", "token: !!int SECRET"],
)
def test_no_refusal_quotes_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, loader: str) -> None:
    """Whatever is wrong beside it, and however PyYAML was built."""
    if loader == "pure":
        monkeypatch.delattr(yaml, "CSafeLoader")
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ApiError, match="cannot use kubeconfig") as refused:
        Credentials(kubeconfig(path)).current()
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("cluster", "insecure-skip-tls-verify", True),
        ("cluster", "tls-server-name", "other"),
        ("cluster", "proxy-url", "http://proxy"),
        ("user", "username", "admin"),
        ("user", "auth-provider", {"name": "gcp"}),
        ("user", "exec", {"command": "aws"}),
    ],
)
def test_what_is_not_served_is_refused_not_ignored(tmp_path: Path, where: str, name: str, value: object) -> None:
    """Nobody is talked to in another way than the kubeconfig says."""
    path = write(tmp_path / "config", **{where: {name: value}})
    with pytest.raises(ApiError) as refused:
        Credentials(kubeconfig(path)).current()
    assert str(refused.value) == (
        f"cannot use kubeconfig {path}: {name} is not served; use a token or a client certificate, and a CA"
    )


@pytest.mark.parametrize("data", ["***", "YQ", "é"])
def test_data_that_is_not_base64_is_refused(tmp_path: Path, data: str) -> None:
    """It is said of which file, and not what the data are."""
    path = write(tmp_path / "config", user={"client-key-data": data})
    with pytest.raises(ApiError, match="data that is not base64") as refused:
        Credentials(kubeconfig(path)).current()
    assert data not in str(refused.value)


def test_a_file_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    """A zero byte in it is told like a file that is not there."""
    path = write(tmp_path / "config", cluster={"certificate-authority": "ca\0.pem"})
    with pytest.raises(ApiError, match=r"^cannot read .*: embedded null byte$"):
        Credentials(kubeconfig(path)).current()


# --- in use ---------------------------------------------------------------------------------------------------


async def test_an_expired_token_is_read_again_at_once(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """401: the file may hold a new one; a call that finds it is answered as if nothing had been."""
    server = ApiServer(namespace("default"), token="first")
    path = write(tmp_path / "config", user={"tokenFile": "token"}, cluster={"server": "http://api"})
    token = tmp_path / "token"
    token.write_text("first")
    wire = Wire(server, nursery)
    async with wire.running(kubeconfig(path)) as cluster:
        server.token = "second"
        await wire.cut(away=False)
        await until(lambda: cluster.error == "the Kubernetes API answered 401: Unauthorized")
        replace(token, "second")
        await until(lambda: cluster.connected)
        assert {call.token for call in server.calls} == {"first", "second"}
        assert server.count("list namespaces") == 1


async def test_a_token_that_changes_behind_an_unchanged_file_is_found(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A file's time and size may stay the same: 401 makes the client look into it whatever they say."""
    tokens = ["old", "new"]
    wire = Wire(ApiServer(namespace("default"), token="new"), nursery)
    client = wire.client(lambda _files: Access("http://api", tokens.pop(0)))
    assert b"uid-of-default" in await client.get("/api/v1/namespaces/default")
    assert [call.token for call in wire.server.calls] == ["old", "new"]
    await client.aclose()


@pytest.mark.parametrize(
    "tls", [Tls(ca=b"nonsense"), Tls(ca=b"\xff"), Tls(cert=b"x", key=b"y")], ids=["CA", "binary CA", "certificate"]
)
async def test_certificates_that_cannot_be_used_are_told(tls: Tls) -> None:
    """The API is not asked without them."""
    client = Client(Credentials(lambda _files: Access("https://127.0.0.1:1", "", tls)), tcp)
    with pytest.raises(ApiError, match=r"^the certificates for the Kubernetes API cannot be used"):
        await client.get("/api/v1/namespaces")


@pytest.mark.parametrize(
    "server",
    [
        "https://127.0.0.1:1", "ftp://127.0.0.1", "nonsense", "http://[::1", "", "http://" + "a" * 64 + ".example",
        "http://a..b", "http://127.0.0.1:99999", "http://-", "http://\u0000", "http://ü\ud800", "http://xn--a",
    ],
)  # fmt: skip
async def test_a_server_that_cannot_be_reached_is_an_error_with_words(server: str) -> None:
    """Refused, or no URL at all: no exception of another kind gets out."""
    client = Client(Credentials(lambda _files: Access(server)), tcp)
    with pytest.raises(ApiError, match=r"^the Kubernetes API cannot be reached \(.+\)$"):
        await client.get("/api/v1/namespaces")
    await client.aclose()
