"""The DNS settings of a result, from a file in the form of ``resolv.conf``.

host-local answers with what its ``resolvConf`` names, read anew for each ADD; so do we.
"""

import os
import stat

from msgspec import Struct

from ipamd.core.errors import Code, RefusedError

_MAX_SIZE = 1 << 20


class Dns(Struct, frozen=True, omit_defaults=True):
    """The ``dns`` of a CNI result."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def read_dns(path: str) -> Dns:
    """The settings in a file; raises RefusedError (7) if there is no such file of moderate size."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not keep the daemon waiting
        try:
            regular = stat.S_ISREG(os.fstat(file).st_mode)
            text = os.read(file, _MAX_SIZE + 1) if regular else b""
        finally:
            os.close(file)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error
    if not regular or len(text) > _MAX_SIZE:
        raise _unreadable(path, f"it is no file of at most {_MAX_SIZE} bytes")
    return parse_dns(text.decode(errors="replace"))


def _unreadable(path: str, why: str) -> RefusedError:
    return RefusedError(
        Code.INVALID_CONFIGURATION,
        f"cannot use the network configuration: ipam.resolvConf {path} cannot be read: {why}; correct it",
    )


def parse_dns(text: str) -> Dns:
    """The settings in a text: of ``domain`` the last one counts, of the others all."""
    found: dict[str, list[str]] = {"nameserver": [], "domain": [], "search": [], "options": []}
    for line in text.split("\n"):
        words = line.split()
        if len(words) > 1 and words[0] in found:
            found[words[0]] += words[1:2] if words[0] in ("nameserver", "domain") else words[1:]
    domain = found["domain"][-1] if found["domain"] else ""
    return Dns(tuple(found["nameserver"]), domain, tuple(found["search"]), tuple(found["options"]))
