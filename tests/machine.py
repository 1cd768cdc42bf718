"""Machines out of namespaces: each with a network, mounts, processes and a host name of its own, as root.

All that runs on a machine is in its process namespace: when its first process ends, the kernel ends the rest and takes
the network and the mounts away, also when the program that made it was killed with ``-9``. A ``Fabric`` is the network
between machines; it lives in the network namespace of the program that makes it, which ``leave_network`` gives it.
"""

import ctypes
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from fcntl import ioctl
from pathlib import Path
from struct import pack
from typing import Any, Self

from tests.daemon_process import Daemon

CLONE_NEWNET = 0x40000000
"""``<linux/sched.h>``; ``os.unshare`` came with Python 3.12."""
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
"""``<linux/sockios.h>``, ``<linux/if.h>``."""

PROGRAMS = {"ip": "iproute2", "ping": "iputils-ping", "unshare": "util-linux", "setpriv": "util-linux"}
"""What machines are made of and tried with, and the Debian packages that have it."""

_START = """
set -e
hostname "$1"
mount -t tmpfs -o mode=755 run /run
mount --bind "$2/boot_id" /proc/sys/kernel/random/boot_id
shift 2
for each in "$@"; do  # what such a directory gets, the host does not see
    mkdir -p "/run/upper$each" "/run/work$each"
    mount -t overlay -o "lowerdir=$each,upperdir=/run/upper$each,workdir=/run/work$each" overlay "$each"
done
for each in all default lo; do echo 0 >/proc/sys/net/ipv6/conf/$each/accept_dad; done
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
ip link set lo up
echo up
sleep infinity & wait
"""
"""A shell, as the first process has to take in those whose parents have ended. Duplicate address detection is off: with
it each IPv6 address takes a second or two to become usable."""


def leave_network() -> bool:
    """Give this thread, and all that it starts, a network of its own; False if that is not allowed."""
    if ctypes.CDLL(None).unshare(CLONE_NEWNET):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        ioctl(any_socket, SIOCSIFFLAGS, pack("16sH14x", b"lo", IFF_UP))
    return True


def reference_plugins() -> Path | None:
    """The directory with the reference plugins, if they are installed."""
    found = (each for each in (Path("/usr/lib/cni"), Path("/opt/cni/bin")) if (each / "ptp").exists())
    return next(found, None)


def lacking(*, programs: Mapping[str, str] = PROGRAMS) -> str:
    """Why no machines can be made here, with what to do; "" if they can."""
    if os.geteuid() != 0:
        return "cannot make network namespaces: only root can; run it as root"
    packages = {package for program, package in programs.items() if shutil.which(program) is None}
    packages |= set() if reference_plugins() else {"containernetworking-plugins"}
    if packages:
        return f"cannot wire pods: programs are missing; install {' '.join(sorted(packages))}"
    return ""


def run(*command: str | Path, **options: Any) -> str:
    """The output of a program that must succeed, within a minute."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
    return done.stdout


class Machine:
    """A machine, from ``boot`` to ``halt``; a context manager from one to the other.

    ``disk``: a directory of its own that outlives it, seen in it under the same path, as all files of the host are.
    Below ``/run`` and ``private`` it has files that nobody else sees, and loses them when it halts.
    """

    def __init__(self, name: str, disk: Path, private: Sequence[str] = ()) -> None:
        self.name, self.disk = name, disk
        self._private = private
        self._process: subprocess.Popen[str] | None = None

    def boot(self) -> None:
        """Start it, with a boot id of its own and a network that has nothing but the loopback interface."""
        self.disk.mkdir(parents=True, exist_ok=True)
        (self.disk / "boot_id").write_text(f"{uuid.uuid4()}\n")
        spaces = ["--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "sh", "-c", _START, "machine"]
        self._process = subprocess.Popen(
            [*command, self.name, str(self.disk), *self._private],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said == "up\n", f"cannot make the machine {self.name}: {said}{self._process.stdout.read()}"

    def halt(self) -> None:
        """End all that runs on it, at once; harmless if it does not run."""
        process, self._process = self._process, None
        if process is not None:
            first = inner(process.pid)
            if first is None:
                process.kill()
            else:
                os.kill(first, signal.SIGKILL)
            process.wait()  # it ends when the first process has, and that when all others have
            assert process.stdout is not None
            process.stdout.close()

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.halt()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.halt()

    @property
    def pid(self) -> int:
        """Its first process, as the host numbers it."""
        assert self._process is not None
        first = inner(self._process.pid)
        assert first is not None
        return first

    @property
    def enter(self) -> tuple[str, ...]:
        """What to put before a command that is to run on it."""
        return ("nsenter", "--target", str(self.pid), "--mount", "--net", "--uts", "--ipc", "--pid", "--")

    def run(self, *command: str | Path, **options: Any) -> str:
        """The output of a program on it, which must succeed."""
        return run(*self.enter, *command, **options)


class Fabric:
    """What the machines are plugged into: a bridge, on which this program is ``address``, and they are ``of(number)``."""

    IPV4, IPV6 = ipaddress.ip_network("172.30.0.0/24"), ipaddress.ip_network("fd00:30::/64")
    address = str(IPV4[1])

    def __init__(self) -> None:
        run("ip", "link", "add", "fabric", "type", "bridge")
        run("ip", "address", "add", f"{self.address}/24", "dev", "fabric")
        run("ip", "link", "set", "fabric", "up")

    def of(self, number: int) -> tuple[str, str]:
        """The IPv4 and the IPv6 address of a machine."""
        return str(self.IPV4[10 + number]), str(self.IPV6[10 + number])

    def plug(self, machine: Machine, number: int) -> None:
        """Give a machine its cable and its addresses, also after it was booted again."""
        subprocess.run(["ip", "link", "delete", machine.name], capture_output=True, check=False)
        run("ip", "link", "add", machine.name, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid))
        run("ip", "link", "set", machine.name, "master", "fabric", "up")
        for address, length in zip(self.of(number), (24, 64), strict=True):
            machine.run("ip", "address", "add", f"{address}/{length}", "dev", "eth0")
        machine.run("ip", "link", "set", "eth0", "up")


class MachineDaemon(Daemon):
    """The daemon of a machine. Signals are sent to it, not to the program that waits for it outside of the machine."""

    def __init__(self, machine: Machine, directory: Path, *flags: str, **options: Any) -> None:
        super().__init__(directory, machine.name, *flags, **options)
        self._machine = machine

    def start(self, *, ready: bool = True) -> None:
        """Start it on the machine, which may have been booted again."""
        self.wrapper = self._machine.enter
        super().start(ready=ready)

    @property
    def pid(self) -> int:
        """The daemon's process, as the host numbers it."""
        found = inner(super().pid)
        assert found is not None, "the daemon has ended"
        return found

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        if self._process is None:
            return 0
        if self.lives and (daemon := inner(self._process.pid)) is not None:
            os.kill(daemon, number)
        elif self.lives:
            self._process.kill()
        return self._process.wait(timeout=20)


def inner(parent: int) -> int | None:
    """The only child of a process that has started one in another process namespace; None if it has ended."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            ended = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return None
        if children:
            return int(children[0])
        if ended:
            return None
        time.sleep(0.002)
    return None
