"""How to reach an etcd cluster: the settings as values, checked when they are made.

Pure: opens no file and no connection.
"""

import ipaddress
from urllib.parse import urlsplit

from msgspec import Struct

DEFAULT_PORT = 2379


class Endpoint(Struct, frozen=True):
    """One member: its URL as configured, for messages, and what gRPC dials."""

    url: str
    target: str
    secure: bool


class EtcdSettings(Struct, frozen=True, kw_only=True):
    """The cluster's endpoints, credentials and time limits.

    Raises ValueError, in words for the configuration's reader, if the parts do not fit together.
    """

    endpoints: tuple[str, ...]
    """``http://host:port`` or ``https://host:port``, tried in this order; an IPv6 address stands in brackets."""
    ca_file: str | None = None
    """PEM: who signed the servers' certificates; None: the system's authorities."""
    cert_file: str | None = None
    """PEM: the client certificate with its chain, together with ``key_file``."""
    key_file: str | None = None
    username: str | None = None
    password_file: str | None = None
    """Holds the password; one trailing newline is not part of it. Read again at each authentication."""
    timeout: float = 5.0
    """Seconds a call may take altogether."""
    keepalive: float = 6.0
    """Seconds of silence after which a connection in use is probed (etcd refuses less than 5)."""
    keepalive_timeout: float = 3.0
    """Seconds after which an unanswered probe ends the connection."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.endpoints:
            raise ValueError("cannot use etcd: no endpoints are given; name at least one, as https://10.0.0.1:2379")
        secure = {endpoint.secure for endpoint in self.parsed}
        if len(secure) > 1:
            raise ValueError("cannot use etcd endpoints of both http and https; give all of them as one or the other")
        if secure == {False} and (self.ca_file or self.cert_file or self.key_file):
            raise ValueError("cannot use certificates with http:// endpoints; write the endpoints as https://")
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cannot use a client certificate without its key; give both cert_file and key_file")
        if bool(self.username) != bool(self.password_file):
            raise ValueError("cannot authenticate with half of a login; give both username and password_file")
        if self.timeout <= 0 or self.keepalive <= 0 or self.keepalive_timeout <= 0:
            raise ValueError("cannot use an etcd timeout or keepalive of zero or less; give seconds above 0")

    @property
    def parsed(self) -> tuple[Endpoint, ...]:
        """The endpoints as gRPC targets."""
        return tuple(parse_endpoint(url) for url in self.endpoints)


def parse_endpoint(url: str) -> Endpoint:
    """The endpoint that ``url`` names; ValueError if it is not of the form ``http[s]://host[:port]``."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ValueError(f"cannot use etcd endpoint {url!r}: {error}; write http://host:port") from None
    if parts.scheme not in {"http", "https"} or not host or parts.path not in {"", "/"} or parts.query:
        raise ValueError(f"cannot use etcd endpoint {url!r}: it is not a plain URL; write http://host:port")
    return Endpoint(url=url, target=_target(host, port), secure=parts.scheme == "https")


def _target(host: str, port: int) -> str:
    """Name the scheme, so that gRPC asks the resolver for names and for nothing else."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"dns:///{host}:{port}"
    return f"ipv4:{host}:{port}" if address.version == 4 else f"ipv6:[{host}]:{port}"
