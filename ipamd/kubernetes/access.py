"""Where the API server is, and what a client shows it: a pod's service account, or a kubeconfig.

``Credentials.current`` gives what is valid now: the files are read again when one of them changed (the kubelet renews
a service account's token every hour, certificates rotate), and when the server no longer takes what they said.
"""

import base64
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import msgspec.yaml
from msgspec import Struct

from ipamd.kubernetes.errors import ApiError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Tls(Struct, frozen=True):
    """PEM texts: what the server's certificate is checked against, and the client's own. None: not given."""

    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = None


class Access(Struct, frozen=True):
    """The server's URL, and what to show it; ``token`` is "" where a client certificate does."""

    server: str
    token: str = ""
    tls: Tls = Tls()


class Files:
    """Reads files, and can say later whether one of them has changed since."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, int, int] | None] = {}

    def read(self, path: Path) -> bytes:
        """The content of a file; raises ApiError."""
        self._seen[path] = _stamp(path)
        try:
            return path.read_bytes()
        except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
            raise ApiError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error

    @property
    def changed(self) -> bool:
        """Whether a file was replaced or rewritten since it was read."""
        return any(_stamp(path) != seen for path, seen in self._seen.items())


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Inode, size and time: also a replaced symbolic link (a mounted Secret) changes it."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


Load = Callable[[Files], Access]


class Credentials:
    """What ``load`` makes of its files, kept until one of them changes."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._files = Files()
        self._access: Access | None = None

    def current(self, *, refused: bool = False) -> Access:
        """Server and credentials. ``refused``: the server did not take the last ones. Raises ApiError."""
        if self._access is None or refused or self._files.changed:
            files = Files()
            self._access = self._load(files)
            self._files = files
        return self._access


def in_cluster(environ: Mapping[str, str], directory: Path = SERVICE_ACCOUNT) -> Load:
    """As a pod: the service account that Kubernetes mounts, and the server that it puts into the environment."""

    def load(files: Files) -> Access:
        host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise ApiError("KUBERNETES_SERVICE_HOST is not set: not in a pod; set kubernetes.config to a kubeconfig")
        token = files.read(directory / "token").decode(errors="replace").strip()
        host = f"[{host}]" if ":" in host else host
        return Access(f"https://{host}:{port}", token, Tls(files.read(directory / "ca.crt")))

    return load


class _Cluster(Struct, rename="kebab"):
    server: str
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""


class _User(Struct, rename="kebab"):
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    username: str = ""
    auth_provider: object = None
    exec: object = None


class _Context(Struct):
    cluster: str
    user: str = ""


class _NamedCluster(Struct):
    name: str
    cluster: _Cluster


class _NamedUser(Struct):
    name: str
    user: _User


class _NamedContext(Struct):
    name: str
    context: _Context


class _Kubeconfig(Struct):
    clusters: list[_NamedCluster]
    contexts: list[_NamedContext]
    current_context: str = msgspec.field(name="current-context")
    users: list[_NamedUser] = []


def _problem(error: Exception) -> str:
    """What is wrong with a kubeconfig, without words of the file, which may be a token's.

    PyYAML quotes the line where it is not built on libyaml. Python's own errors, of a text that is to be a date or a
    number, quote it as well; msgspec 0.23 wraps them.
    """
    wrapped = isinstance(error, msgspec.DecodeError) and not isinstance(error, msgspec.ValidationError)
    cause = error.__context__ if wrapped else error
    mark = getattr(cause, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}, column {mark.column + 1}, is no YAML that is understood; correct it"
    known = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
    if isinstance(cause, (ValueError, LookupError, AttributeError)) and not isinstance(cause, known):
        return "a value is no such date or number; quote it"
    return " ".join(str(error).split())


def kubeconfig(path: Path) -> Load:
    """By a kubeconfig's current context: server, CA, and a token or a client certificate, in files or inline.

    What would need another program or weaken TLS is refused, not ignored.
    """

    def load(files: Files) -> Access:
        text = files.read(path)
        try:
            config = msgspec.yaml.decode(text, type=_Kubeconfig)
        except Exception as error:  # whatever Python raises where PyYAML makes a value of a text
            raise ApiError(f"cannot use kubeconfig {path}: {_problem(error)}") from error
        context = next((c.context for c in config.contexts if c.name == config.current_context), None)
        cluster = next((c.cluster for c in config.clusters if context and c.name == context.cluster), None)
        user = next((u.user for u in config.users if context and u.name == context.user), _User())
        if cluster is None:
            raise ApiError(
                f"cannot use kubeconfig {path}: its current-context {config.current_context!r} has no cluster"
            )
        _refuse_unserved(path, cluster, user)

        def content(data: str, name: str) -> bytes | None:
            if data:
                try:
                    return base64.b64decode(data, validate=True)
                except ValueError as error:  # binascii.Error, or of what is not ASCII
                    raise ApiError(f"cannot use kubeconfig {path}: data that is not base64 ({error})") from error
            return files.read(path.parent / name) if name else None

        token = user.token or (content("", user.token_file) or b"").decode(errors="replace").strip()
        tls = Tls(
            content(cluster.certificate_authority_data, cluster.certificate_authority),
            content(user.client_certificate_data, user.client_certificate),
            content(user.client_key_data, user.client_key),
        )
        return Access(cluster.server.rstrip("/"), token, tls)

    return load


def _refuse_unserved(path: Path, cluster: _Cluster, user: _User) -> None:
    settings: tuple[tuple[str, object], ...] = (
        ("insecure-skip-tls-verify", cluster.insecure_skip_tls_verify),
        ("tls-server-name", cluster.tls_server_name),
        ("proxy-url", cluster.proxy_url),
        ("username", user.username),
        ("auth-provider", user.auth_provider),
        ("exec", user.exec),
    )
    for name, value in settings:
        if value:
            raise ApiError(
                f"cannot use kubeconfig {path}: {name} is not served; use a token or a client certificate, and a CA"
            )
