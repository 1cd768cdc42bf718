"""What the daemon takes from its host: clocks, boot id, signals, the node's lock, open files, a TCP listener.

Imports of ipamd only ``core`` and ``config``.
"""

import hashlib
import os
import resource
import signal
import socket
import time
from pathlib import Path

import trio

from ipamd.config import Config, split_address
from ipamd.core.clock import Now


def read_clocks() -> Now:
    """The host's clocks, now."""
    return Now(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def machine_id() -> str:
    """What the host's system calls this machine, over its reboots; "" if it does not say."""
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""


def network_namespace() -> str:
    """What the kernel calls the network namespace of this process."""
    return str(Path("/proc/self/ns/net").readlink())


def only_daemon(config: Config) -> socket.socket:
    """Make sure that no other daemon on this host speaks for this node in this store; raises OSError.

    Two that did would hand out the same reserve. Another state directory does not tell (its own lock does that for
    one). The embedded store's file is one node's, whatever its name.
    """
    try:
        if config.store == "embedded":
            return lock_file(config.embedded.path)
        return _take(f"{config.node} etcd")  # not the endpoints: the same cluster goes by many names
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot serve node {config.node}: another ipamd on this host does, with the same store; stop that one",
        ) from error


def lock_file(path: Path) -> socket.socket:
    """Take an embedded store's file for this process alone, until the lock is closed; raises OSError."""
    return _take(str(path.resolve()))


def _take(name: str) -> socket.socket:
    """An abstract socket of this name, which the kernel frees when the process ends, however it ends."""
    digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.bind(f"\0ipamd-{digest}")
    except OSError:
        lock.close()
        raise
    return lock


def allow_files(wanted: int) -> int:
    """Let this process have so many files open, or as many as the host lets it; returns how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (resource.RLIM_INFINITY, wanted) or soft > wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


def bind_tcp(address: str) -> socket.socket:
    """A TCP socket that listens on ``host:port``; raises OSError in words."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        number = error.errno or 0
        cause = os.strerror(number) if number > 0 else error.strerror  # negative: no such host
        raise OSError(f"cannot serve metrics on {address}: {cause}; choose another metrics_address") from error


async def told_to_stop() -> str:
    """Wait for SIGTERM, SIGINT or SIGHUP (a terminal that was closed; not under nohup(1)); returns its name."""
    ends = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)
    with trio.open_signal_receiver(*ends) as signals:
        async for number in signals:
            return signal.Signals(number).name
    raise AssertionError  # the receiver never ends by itself
