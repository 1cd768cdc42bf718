"""The units and their companions, through systemd's own tools."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ipamd.config import Config
from ipamd.daemon import DRAIN_GRACE, GRACE, START_GRACE
from tests.systemd.service_manager import UNITS, missing, seconds, unit

NAMES = ("ipamd.socket", "ipamd.service", "ipamd-install-cni.service")
PROGRAM = "opt/ipamd/bin/ipamd"
HOST_UNITS = Path("/usr/lib/systemd/system")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host's files: systemd's own units, ours where an administrator puts them, and the program."""
    if shutil.which("systemd-analyze") is None or not HOST_UNITS.exists():
        missing("cannot check the units without systemd-analyze; install systemd (tests/system.sh)")
    shutil.copytree(HOST_UNITS, tmp_path / "usr/lib/systemd/system", symlinks=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    for name in NAMES:
        target = tmp_path / "etc/systemd/system" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(UNITS / name, target)
    (tmp_path / PROGRAM).parent.mkdir(parents=True)
    (tmp_path / PROGRAM).write_text("#!/bin/sh\n")
    (tmp_path / PROGRAM).chmod(0o755)
    return tmp_path


def run(*command: str) -> str:
    """Output of a program that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_has_nothing_to_say_about_the_units(root: Path) -> None:
    """No unknown setting, no missing program, no circle of orderings."""
    assert run("systemd-analyze", "verify", "--man=no", f"--root={root}", *NAMES) == ""


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".service")])
def test_what_a_service_could_do_beyond_its_work_is_little(root: Path, name: str) -> None:
    """The exposure that systemd works out, from 0 to 10, is 1.5 at most."""
    text = run("systemd-analyze", "security", "--offline=yes", "--no-pager", f"--root={root}", name)
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", text)
    assert found, text
    assert float(found[1]) <= 1.5


def test_user_and_directories_are_made_as_the_units_expect_them(root: Path) -> None:
    """By sysusers.d user and group, by tmpfiles.d the directories; the plugins' own is spared."""
    if os.geteuid() != 0:
        missing("cannot make users and directories; run this as root")
    for kind in ("sysusers", "tmpfiles"):
        target = root / f"usr/lib/{kind}.d/ipamd.conf"
        target.parent.mkdir(parents=True)
        shutil.copy(UNITS / f"ipamd.{kind}", target)
    (root / "etc").mkdir(exist_ok=True)
    plugins = root / "opt/cni/bin"
    plugins.mkdir(parents=True)
    plugins.chmod(0o750)
    run("systemd-sysusers", f"--root={root}", "ipamd.conf")
    run("systemd-tmpfiles", "--create", f"--root={root}", "ipamd.conf")
    service = unit("ipamd.service")
    assert re.search(r"^ipamd:[^:]*:(\d+):(\d+):", (root / "etc/passwd").read_text(), re.MULTILINE)
    assert re.search(r"^ipamd:", (root / "etc/group").read_text(), re.MULTILINE)
    assert service["User"] == service["Group"] == [Config().socket_group] == unit("ipamd.socket")["SocketGroup"]
    for name in service["StateDirectory"][0].split():
        directory = root / "var/lib" / name
        assert f"{directory.stat().st_mode & 0o7777:04o}" == service["StateDirectoryMode"][0]
        assert directory.stat().st_uid != 0
    assert (root / "run/ipamd").stat().st_mode & 0o777 == 0o755
    assert plugins.stat().st_mode & 0o777 == 0o750


def test_the_units_agree_with_the_configuration() -> None:
    """The default paths are those that the units grant; the plugin is put where its unit may write."""
    config, service = Config(), unit("ipamd.service")
    assert unit("ipamd.socket")["ListenStream"] == [str(config.socket)]
    assert config.socket.parent == Path("/run", service["RuntimeDirectory"][0])
    states = [Path("/var/lib", name) for name in service["StateDirectory"][0].split()]
    assert states == [config.state_dir, config.spool_dir]
    install = unit("ipamd-install-cni.service")
    assert install["ReadWritePaths"] == ["/opt/cni/bin"]
    assert install["ExecStart"] == [f"/{PROGRAM} install-cni /opt/cni/bin --as ipamd"]


def test_no_patience_of_the_daemon_is_longer_than_systemds() -> None:
    """A start that waits for the store and a stop that drains end before systemd ends them."""
    service = unit("ipamd.service")
    assert seconds(service["TimeoutStartSec"][0]) > 2 * START_GRACE
    assert seconds(service["TimeoutStopSec"][0]) > 2 * GRACE + DRAIN_GRACE + 5
