"""``make run`` as a newcomer meets it: what it prints, the lines to paste, Ctrl-C, a crash, and a second one."""

import ipaddress
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.daemon_process import addresses_of
from tests.make_process import DEPENDENCIES, Checkout, make_run
from tests.real.conftest import missing

pytestmark = pytest.mark.real

PROMPT = 1.0
"""Seconds that a pasted line may take, on a busy machine too."""


@pytest.fixture
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A newcomer's copy."""
    for program in ("make", "curl"):
        if shutil.which(program) is None:
            missing(f"cannot try the first command without {program}; install it")
    return Checkout(tmp_path_factory.mktemp("run"))


@pytest.fixture
def stranger() -> tuple[int, str]:
    """A user without any rights, and a Python of this version that it can run with the dependencies."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else; the other tests run without root here")
    user, (major, minor) = pwd.getpwnam("nobody").pw_uid, sys.version_info[:2]
    look = "import sys; sys.path += sys.argv[1:]; import trio, msgspec, structlog, prometheus_client"
    for python in (sys.executable, f"/usr/local/bin/python{major}.{minor}", f"/usr/bin/python{major}.{minor}"):
        with suppress(OSError):
            command = [python, "-I", "-c", look, *DEPENDENCIES]
            if subprocess.run(command, user=user, capture_output=True, check=False, timeout=30).returncode == 0:
                return user, python
    pytest.skip(f"no Python {major}.{minor} here that nobody may run")


def add(checkout: Checkout, line: str) -> str:
    """Paste the first line; the address that it gives, at once."""
    began = time.monotonic()
    done = checkout.paste(line)
    assert time.monotonic() - began < PROMPT
    assert done.returncode == 0, done.stdout + done.stderr
    (address,) = addresses_of(done.stdout.encode())
    return address


def try_all(checkout: Checkout, lines: list[str]) -> str:
    """Paste the three lines, verbatim; returns the address."""
    address = add(checkout, lines[0])
    assert ipaddress.ip_address(address) in ipaddress.ip_network("192.168.0.0/16")
    allocations = json.loads(checkout.paste(lines[1]).stdout)
    assert [(view["address"], view["container"]) for view in allocations] == [(address, "web-1")]
    assert 'ipamd_requests_total{code="0",verb="ADD"} 1.0' in checkout.paste(lines[2]).stdout
    assert len(lines) == 3
    return address


def test_three_lines_to_paste(checkout: Checkout) -> None:
    """Each printed line works as printed; Ctrl-C ends it cleanly, and the next start finds what the first one gave."""
    with make_run(checkout) as running:
        address = try_all(checkout, running.lines())
        assert running.interrupt() in (0, -signal.SIGINT)
        assert "event=stopped unflushed=0" in running.output
        assert "***" not in running.output, "make complains"
    began = time.monotonic()
    with make_run(checkout) as running:
        lines = running.lines()
        assert time.monotonic() - began < 5
        assert add(checkout, lines[0]) == address


def test_a_crash_loses_nothing(checkout: Checkout) -> None:
    """After kill -9 of the daemon, make run again gives the same container the same address."""
    with make_run(checkout) as running:
        address = add(checkout, running.lines()[0])
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait() != 0
    with make_run(checkout) as running:
        lines = running.lines()
        assert json.loads(checkout.paste(lines[1]).stdout)[0]["address"] == address
        assert add(checkout, lines[0]) == address


def test_a_second_one_says_why_it_does_not_start(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A second make run, of the same copy or of another on the same port, fails with words and harms nothing."""
    other = Checkout(tmp_path_factory.mktemp("run"))
    other.metrics = checkout.metrics
    with make_run(checkout) as running:
        lines = running.lines()
        address = add(checkout, lines[0])
        second = checkout.run("make", "run")
        assert second.returncode != 0
        assert "another ipamd" in second.stderr
        assert "stop that one" in second.stderr
        third = other.run("make", "run")
        assert third.returncode != 0
        assert f"cannot serve metrics on {checkout.metrics}: Address already in use; choose another" in third.stderr
        assert add(checkout, lines[0]) == address
        assert not any("Traceback" in done.stderr for done in (second, third))


def test_a_user_without_rights(stranger: tuple[int, str]) -> None:
    """Nothing of it needs root."""
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which is root's alone
        Path(folder).chmod(0o755)
        checkout = Checkout(Path(folder), *stranger)
        with make_run(checkout) as running:
            try_all(checkout, running.lines())
