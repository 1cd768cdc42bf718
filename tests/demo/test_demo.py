"""``make demo``: what its page shows is what it does, it leaves nothing behind, and says what it lacks."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.daemon_process import wait_for
from tests.machine import PROGRAMS, lacking, reference_plugins
from tests.real.conftest import missing

pytestmark = [pytest.mark.real, pytest.mark.root]

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "demo.md"
COMMAND = [sys.executable, "-m", "tests.demo"]

MOVES = (
    r"\d+ ms$", r"time=[\d.]+ ms", r"in \d+ s:", r"^   node-c has \d+ addresses", r"^   \d+ facts",
    r"\d+ in reserve, \d+ free", r"record \d+ allocations", r"[Pr.]{8}", r" +",
)  # fmt: skip
"""What differs from run to run: times, and how much a node has in reserve."""

in_ci = pytest.mark.skipif(not os.environ.get("CI"), reason="takes half a minute: run in CI; here by `make demo`")


def fixed(text: str) -> list[str]:
    """A run's lines without what differs."""
    for pattern in MOVES:
        text = re.sub(pattern, " ", text, flags=re.MULTILINE)
    return [line.strip() for line in text.splitlines()]


def processes(folder: Path) -> list[str]:
    """The command lines of all processes that have to do with a folder, but for the demonstration's own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended
            continue
    return [line for line in found if str(folder) in line]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory whose path is short enough for sockets below it, whatever runs the tests."""
    with tempfile.TemporaryDirectory(prefix="ipamd-") as name:
        yield Path(name)


@contextmanager
def begun(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A demonstration that runs, its files below ``folder``."""
    if why := lacking():
        missing(why)
    running = subprocess.Popen(
        COMMAND, cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):  # after SIGKILL its etcd is left
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate(timeout=20)


@in_ci
def test_a_run_is_what_the_page_shows(folder: Path) -> None:
    """From the first line to the last, but for times and the size of the reserve; nothing of it remains."""
    with begun(folder) as running:
        output, _ = running.communicate(timeout=240)
    assert running.returncode == 0, output
    shown = PAGE.read_text().rstrip().removesuffix("```").rpartition("```\n")[2]
    assert fixed(output) == fixed(shown)
    assert list(folder.iterdir()) == []
    assert processes(folder) == []


@in_ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_one_that_is_ended_early_leaves_nothing_running(folder: Path, number: signal.Signals) -> None:
    """Ctrl-C, which the terminal sends to all of it, and SIGTERM end the nodes and remove the files; SIGKILL the nodes."""
    with begun(folder) as running:
        assert running.stdout is not None
        assert any("web-3" in line for line in running.stdout), "it ended by itself"
        assert len(processes(folder)) > 6
        if number == signal.SIGINT:
            os.killpg(running.pid, number)
        else:
            running.send_signal(number)
        running.wait(timeout=60)
        if number == signal.SIGKILL:
            wait_for(lambda: not any("node-" in line for line in processes(folder)), 20, lambda: processes(folder))
            return
        assert running.returncode == 130
        assert "nothing of it remains" in running.stdout.read()
        assert list(folder.iterdir()) == []
        assert processes(folder) == []


def refused(*wrapper: str, **environment: str) -> str:
    """What a demonstration says that cannot be shown."""
    settings = {**os.environ, **environment}
    done = subprocess.run(
        [*wrapper, *COMMAND], cwd=ROOT, env=settings, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_without_root_it_says_so() -> None:
    """Nothing is begun."""
    if os.geteuid() == 0 and lacking():
        missing(lacking())
    wrapper = ("unshare", "--user") if os.geteuid() == 0 else ()
    assert refused(*wrapper) == "make demo: cannot make network namespaces: only root can; run it as root\n"


def test_it_names_the_packages_that_are_missing() -> None:
    """By the names under which Debian has them."""
    if why := lacking():
        missing(why)
    packages = " ".join(sorted(set(PROGRAMS.values())))
    words = "make demo: cannot wire pods: programs are missing; install"
    assert refused(PATH="/nowhere") == f"{words} {packages}\n"
    hide = f'mount -t tmpfs none "{reference_plugins()}" && exec "$@"'
    assert refused("unshare", "--mount", "sh", "-c", hide, "sh") == f"{words} containernetworking-plugins\n"
