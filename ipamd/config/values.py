"""One raw value, from a file or as text, made into the typed value of its key; or the words that refuse it.

A refusal reads on from the name of the key: "must be a whole number from 1 to 4096, not 0".

May import nothing of ipamd but ``config.schema``, ``core.address`` and ``core.selector``.
"""

import ipaddress
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import inspect

from ipamd.config.schema import Key
from ipamd.core.address import parse_cidr
from ipamd.core.selector import parse_labels, parse_selector

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NODE = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_SOCKET_BYTES = 107  # sockaddr_un.sun_path is 108 bytes with its closing NUL, unix(7)
_LINK_LOCAL = {4: parse_cidr("169.254.0.0/16"), 6: parse_cidr("fe80::/10")}  # which Calico refuses for a pool

_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "an array",
    dict: "a table",
}


class BadValueError(ValueError):
    """A value that its key cannot have."""


def quoted(text: str) -> str:
    """A value as it may stand in a message: in quotes, on one line, not long, nothing in it that a terminal obeys."""
    return escaped(json.dumps(text if len(text) <= 64 else text[:61] + "...", ensure_ascii=False))


def escaped(text: str) -> str:
    """A name as it may stand in a message: on one line, nothing in it that a terminal obeys."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def kind_of(raw: object) -> str:
    """What a TOML value is, in words."""
    return _KINDS.get(type(raw), "a date or time")


def from_text(key: Key, text: str) -> Any:
    """The typed value of a key given as text, in the environment or on the command line; raises BadValueError."""
    if isinstance(key.type, inspect.IntType):
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise BadValueError(f"must be {_range(key.type)}, not {quoted(text)}")
        return from_raw(key, int(text))
    if isinstance(key.type, inspect.FloatType):
        if not re.fullmatch(r"-?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})", text):
            raise BadValueError(f"must be {_range(key.type)}, not {quoted(text)}")
        return from_raw(key, float(text))
    if isinstance(key.type, inspect.BoolType):
        return from_raw(key, {"true": True, "false": False}.get(text, text))
    if isinstance(key.type, inspect.VarTupleType):
        return from_raw(key, [item.strip() for item in text.split(",") if item.strip()])
    return from_raw(key, text)


def from_calico(key: Key, text: str) -> Any:
    """The typed value of a key given as Calico's node agent understands it; raises BadValueError."""
    if isinstance(key.type, inspect.BoolType):
        if key.calico == "NO_DEFAULT_POOLS":
            return text.lower() == "true"
        return text.lower() not in ("false", "0", "no", "n", "f")
    if isinstance(key.type, inspect.LiteralType):
        return from_text(key, _MODES.get(text.lower(), text))
    return from_text(key, "" if text == "none" and key.name.endswith("_cidr") else text)


_MODES = {
    "off": "Never",
    "never": "Never",
    "always": "Always",
    "crosssubnet": "CrossSubnet",
    "cross-subnet": "CrossSubnet",
}


def from_raw(key: Key, raw: object) -> Any:
    """The typed value of a key given as a TOML value; raises BadValueError."""
    value = _typed(key.type, raw)
    check = _FORMATS.get(key.path)
    if check is not None and value not in ("", None):
        check(value)
    return value


def split_address(text: str) -> tuple[str, int]:
    """The host and port of ``host:port`` or ``[::1]:port``; raises BadValueError."""
    host, _, digits = text.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", digits) or int(digits) > 65535:
        raise BadValueError(f"must be host:port or [IPv6 address]:port, not {quoted(text)}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_address(host, 6):
            raise BadValueError(f"must have an IPv6 address in the brackets, not {quoted(host)}")
    elif ":" in host:
        raise BadValueError(f"must have its IPv6 address in brackets: [::1]:port, not {quoted(text)}")
    elif not _HOST.fullmatch(host) or (re.fullmatch(r"[0-9.]+", host) and not _is_address(host, 4)):
        raise BadValueError(f"must begin with a host name or an address, not {quoted(host)}")
    return host, int(digits)


def _typed(kind: inspect.Type, raw: object) -> Any:
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return _number(kind, raw)
    if isinstance(kind, inspect.BoolType):
        if not isinstance(raw, bool):
            raise BadValueError(f"must be true or false, not {quoted(raw) if isinstance(raw, str) else kind_of(raw)}")
        return raw
    if isinstance(kind, inspect.VarTupleType):
        if not isinstance(raw, list):
            raise BadValueError(f"must be an array, not {kind_of(raw)}")
        return tuple(_text(item, "an array of texts, not one with") for item in raw)
    if isinstance(kind, inspect.LiteralType):
        choices = ", ".join(str(choice) for choice in kind.values)
        if _text(raw, f"one of {choices}, not") not in kind.values:
            raise BadValueError(f"must be one of {choices}, not {quoted(str(raw))}")
        return raw
    text = _text(raw, "text, not")
    if isinstance(kind, inspect.StrType):
        return text
    if isinstance(kind, inspect.UnionType) and not text:
        return None
    if not text.startswith("/"):
        raise BadValueError(f"must be an absolute path, not {quoted(text)}")
    return Path(text)


def _number(kind: inspect.IntType | inspect.FloatType, raw: object) -> int | float:
    whole = isinstance(kind, inspect.IntType)
    if isinstance(raw, bool) or not isinstance(raw, int | float) or (whole and isinstance(raw, float)):
        raise BadValueError(f"must be {_range(kind)}, not {kind_of(raw)}")
    low = -math.inf if kind.ge is None else kind.ge
    high = math.inf if kind.le is None else kind.le
    if not low <= raw <= high:  # written so that it holds for nan
        shown = f", not {raw}" if abs(raw) < 1e18 else ""  # one with thousands of digits cannot even be printed
        raise BadValueError(f"must be {_range(kind)}{shown}")
    return raw if whole else float(raw)


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
    return f"{noun} from {kind.ge} to {kind.le}"


def _text(raw: object, wanted: str) -> str:
    if not isinstance(raw, str):
        raise BadValueError(f"must be {wanted} {kind_of(raw)}")
    if not raw.isprintable():  # also what an environment variable's bytes become that are not UTF-8
        first = next(c for c in raw if not c.isprintable())  # not all of it: it may be an endpoint with a password
        raise BadValueError(f"must be printable text, without {quoted(first)}")
    return raw


def _is_address(text: str, family: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == family
    except ValueError:
        return False


def _check_node(name: str) -> None:
    # A name that Kubernetes does not know is worse than none: Calico's garbage collection would take the addresses
    # of a node that does not exist, while pods use them.
    if len(name) > 253 or not _NODE.fullmatch(name):
        raise BadValueError(
            f"must be a node's name in Kubernetes (lower case letters, digits, - and .), not {quoted(name)}"
        )


def _check_labels(text: str) -> None:
    try:
        parse_labels(text)
    except ValueError as error:
        raise BadValueError(str(error)) from None


def _check_socket(path: Path) -> None:
    size = len(str(path).encode())
    if size > _SOCKET_BYTES:
        raise BadValueError(f"must be a path of at most {_SOCKET_BYTES} bytes, not of {size}")


def _check_endpoints(endpoints: tuple[str, ...]) -> None:
    for endpoint in endpoints:
        if "@" in endpoint:  # not repeated: what stands before the @ may be a password
            raise BadValueError("must not have a user or password in it; use etcd.username and etcd.password_file")
        scheme, _, address = endpoint.partition("://")
        if scheme not in ("http", "https") or not address:
            raise BadValueError(f"must be http://host:port or https://host:port, not {quoted(endpoint)}")
        _, port = split_address(address)
        if port == 0:
            raise BadValueError(f"must have a port other than 0, not {quoted(endpoint)}")


def _check_pool(family: int) -> Callable[[str], None]:
    def check(text: str) -> None:
        try:
            cidr = parse_cidr(text)
        except ValueError as error:
            raise BadValueError(f"must be an IPv{family} CIDR: {error}") from None
        if cidr.family != family:
            raise BadValueError(f"must be an IPv{family} CIDR, not {quoted(text)}")
        if cidr.overlaps(_LINK_LOCAL[family]):
            raise BadValueError(
                f"must not overlap link-local addresses ({_LINK_LOCAL[family]}), as {quoted(text)} does"
            )

    return check


def _check_selector(text: str) -> None:
    try:
        parse_selector(text)
    except ValueError as error:
        raise BadValueError(f"must be a selector: {error}") from None
    if re.search(r"\bglobal\s*\(", text):
        raise BadValueError("must not use global(), which means nothing for a node")


def _check_kubernetes(text: str) -> None:
    if text != "in-cluster" and not text.startswith("/"):
        raise BadValueError(f"must be in-cluster or the absolute path of a kubeconfig, not {quoted(text)}")


def _check_address(text: str) -> None:
    split_address(text)


_FORMATS: dict[str, Callable[[Any], None]] = {
    "node": _check_node,
    "node_labels": _check_labels,
    "socket": _check_socket,
    "metrics_address": _check_address,
    "etcd.endpoints": _check_endpoints,
    "default_pools.ipv4_cidr": _check_pool(4),
    "default_pools.ipv6_cidr": _check_pool(6),
    "default_pools.ipv4_node_selector": _check_selector,
    "default_pools.ipv6_node_selector": _check_selector,
    "kubernetes.config": _check_kubernetes,
}
"""What a value must be beyond its type; empty ones are not asked."""
