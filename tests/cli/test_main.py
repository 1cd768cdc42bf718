"""The command line: what each command does, prints and returns."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import structlog

import ipamd
from ipamd.cli.main import main
from ipamd.config import KEYS, Config


@pytest.fixture(autouse=True)
def _bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No configuration but what a test gives."""
    for name in [name for name in os.environ if name.startswith("IPAMD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("IPAMD_NODE", "n1")
    monkeypatch.setattr("ipamd.config.sources.DEFAULT_FILE", tmp_path / "default.toml")
    yield
    structlog.reset_defaults()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, bool]]:
    """The daemon's runs, none of which really takes place; each fails with 1 if it is a demo."""
    runs: list[tuple[Config, bool]] = []

    def run(config: Config, *, demo: bool = False) -> int:
        runs.append((config, demo))
        return int(demo)

    daemon = ModuleType("ipamd.daemon")
    vars(daemon)["run"] = run
    monkeypatch.setitem(sys.modules, "ipamd.daemon", daemon)
    monkeypatch.setattr("ipamd.logs.configure", lambda *_: None)
    return runs


def usage_error(argv: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The last words of a command line that is refused, without the usage before them."""
    with pytest.raises(SystemExit) as refused:
        main(argv)
    assert refused.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    usage, _, words = err.partition("\nipamd")
    assert usage.startswith("usage: ipamd")
    return f"ipamd{words.rstrip()}"


@pytest.mark.parametrize("argv", [[], ["run"]])
def test_the_daemon_runs_with_and_without_the_word_run(argv: list[str], started: list[tuple[Config, bool]]) -> None:
    """A unit file says `ipamd`; a person may say `ipamd run`."""
    assert main(argv) == 0
    assert started == [(Config(node="n1"), False)]


def test_flags_need_no_command_either(started: list[tuple[Config, bool]]) -> None:
    """A line that begins with a flag is one for run."""
    assert main(["--reserve-min", "20", "--node=n2"]) == 0
    assert [(config.node, config.reserve.min) for config, _ in started] == [("n2", 20)]


def test_the_daemons_exit_code_is_the_commands_and_demo_is_passed_on(started: list[tuple[Config, bool]]) -> None:
    """What run returns is what the shell sees."""
    assert main(["run", "--demo"]) == 1
    assert [demo for _, demo in started] == [True]


@pytest.mark.parametrize("path", KEYS)
def test_every_key_has_a_flag_that_sets_it(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A flag's text arrives at its key and at no other: the message about a bad one proves it."""
    assert main(["run", KEYS[path].flag, "\x07", "--check-config"]) == 2
    (problem,) = capfd.readouterr().err.splitlines()[1:]
    assert problem.startswith(f"  {KEYS[path].flag}: must be ")


def test_the_help_of_run_has_every_flag_with_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    """--help is complete, and ends with examples."""
    with pytest.raises(SystemExit) as done:
        main(["run", "--help"])
    assert done.value.code == 0
    text = " ".join(capfd.readouterr().out.split())
    for key in KEYS.values():
        assert f"{key.flag} " in text
        assert key.help in text
    assert "examples: ipamd run --demo" in text


def test_the_help_has_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    """`ipamd --help` is about the whole, not about run."""
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    out = capfd.readouterr().out
    assert all(command in out for command in ("run", "install-cni", "version"))
    assert "--reserve-min" not in out


@pytest.mark.parametrize("argv", [["version"], ["--version"]])
def test_the_version_is_printed(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """One line, for people and scripts."""
    assert main(argv) == 0
    assert capfd.readouterr().out == f"ipamd {ipamd.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["rnu"], "ipamd: error: unknown command 'rnu'; did you mean run?"),
        (["run", "now"], "ipamd run: error: unexpected argument 'now'"),
        (["version", "now"], "ipamd version: error: unexpected argument 'now'"),
        (["--node"], "ipamd run: error: argument --node: expected one argument"),
        (["--reserve-mim", "3"], "ipamd run: error: unknown flag --reserve-mim; did you mean --reserve-min?"),
        (["--reserve-mim=3"], "ipamd run: error: unknown flag --reserve-mim; did you mean --reserve-min?"),
        (["--zzz", "--zzy"], "ipamd run: error: unknown flag --zzz\n  unknown flag --zzy"),
        (["version", "--node", "x"], "ipamd version: error: unknown flag --node"),
        (["install-cni"], "ipamd install-cni: error: the following arguments are required: DIR"),
        (
            ["--print-config", "--check-config"],
            "ipamd run: error: argument --check-config: not allowed with argument --print-config",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    argv: list[str], words: str, capfd: pytest.CaptureFixture[str], started: list[tuple[Config, bool]]
) -> None:
    """Nothing runs, the exit code is 2, and a misspelt word is met with the right one."""
    assert usage_error(argv, capfd) == words
    assert started == []


@pytest.mark.parametrize("argv", [["--etcd-password", "hunter2"], ["--etcd-password=hunter2"]])
def test_a_password_after_a_flag_that_does_not_exist_is_not_repeated(
    argv: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor is the flag taken for an abbreviation of --etcd-password-file."""
    assert usage_error(argv, capfd) == (
        "ipamd run: error: unknown flag --etcd-password; did you mean --etcd-password-file?"
    )


def test_a_configuration_that_cannot_be_used_is_refused_with_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], started: list[tuple[Config, bool]]
) -> None:
    """Every problem goes to standard error and nothing is started."""
    (tmp_path / "x.toml").write_text("stor = 'etcd'")
    assert main(["--config", str(tmp_path / "x.toml"), "--reserve-min", "0"]) == 2
    out, err = capfd.readouterr()
    assert (out, started) == ("", [])
    assert err == (
        "ipamd: cannot use the configuration:\n"
        f'  {tmp_path}/x.toml: unknown key "stor"; did you mean store at the top of the file?\n'
        "  --reserve-min: must be a whole number from 1 to 4096, not 0\n"
    )


def test_a_configuration_can_be_checked_without_running(
    capfd: pytest.CaptureFixture[str], started: list[tuple[Config, bool]]
) -> None:
    """--check-config says ok or what is wrong, with the exit code for a script."""
    assert main(["--check-config"]) == 0
    assert capfd.readouterr().out == "ok\n"
    assert main(["--check-config", "--store", "etcd"]) == 2
    assert "store is etcd but etcd.endpoints is empty" in capfd.readouterr().err
    assert started == []


def test_a_group_that_is_not_there_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    """A misspelt socket_group is no mistake to refuse, as the group may come later, but worth a word; the default is not."""
    assert main(["--check-config", "--socket-group", "no-such-group-here"]) == 0
    out, err = capfd.readouterr()
    assert out == "ok\n"
    assert "socket_group is no-such-group-here, which this host does not have" in err
    assert main(["--check-config"]) == 0
    assert capfd.readouterr().err == ""


def test_the_printed_configuration_is_that_of_all_sources(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The default file, the environment and the flags are in it, each named as a source."""
    (tmp_path / "default.toml").write_text("log_format = 'json'")
    assert main(["--print-config", "--log-level", "debug"]) == 0
    out = capfd.readouterr().out
    assert f'log_format = "json"  # file:{tmp_path}/default.toml\n' in out
    assert 'node = "n1"  # env:IPAMD_NODE\n' in out
    assert 'log_level = "debug"  # flag:--log-level\n' in out
    assert tomllib.loads(out)["reserve"] == {"min": 16, "max": 256, "wait": 10.0, "decay": 30.0}


def test_a_named_file_takes_the_place_of_the_default_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With --config the usual file is not read at all."""
    (tmp_path / "default.toml").write_text("this is not TOML")
    (tmp_path / "x.toml").write_text("log_format = 'json'")
    assert main(["--check-config"]) == 2
    assert main(["--check-config", "--config", str(tmp_path / "x.toml")]) == 0
    assert capfd.readouterr().out == "ok\n"


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ([], ["ipamd"]),
        (["--as", "ipamd", "calico-ipam"], ["ipamd", "calico-ipam"]),
        (["--as", "host-local"], ["host-local"]),
    ],
)
def test_the_plugin_is_installed_under_the_names_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    extra: list[str],
    names: list[str],
) -> None:
    """Without names only ipamd's own: a name that others use is taken over only when asked."""
    program = tmp_path / "program"
    program.write_bytes(b"plugin")
    monkeypatch.setattr("ipamd.cni.install.binary_for", lambda _: program)
    directory = tmp_path / "bin"
    directory.mkdir()
    assert main(["install-cni", str(directory), *extra]) == 0
    assert capfd.readouterr().out.split() == [str(directory / name) for name in names]
    assert sorted(path.name for path in directory.iterdir()) == sorted(names)


def test_an_installation_that_is_refused_ends_with_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The reason goes to standard error."""
    assert main(["install-cni", str(tmp_path / "none")]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"ipamd: cannot install the CNI plugin in {tmp_path}/none: it is not a directory; ")


@pytest.mark.real
def test_the_module_is_the_command() -> None:
    """`python -m ipamd` in a process of its own prints and exits as the command does."""
    done = subprocess.run(
        [sys.executable, "-m", "ipamd", "--check-config", "--reserve-min", "x"],
        cwd=Path(ipamd.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == "ipamd: cannot use the configuration:"


@pytest.mark.real
def test_help_and_version_import_neither_trio_nor_structlog() -> None:
    """What is only asked for a word answers at once."""
    code = (
        "import sys; from ipamd.cli.main import main; main(['version']); print({'trio', 'structlog'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(ipamd.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.splitlines()[1] == "set()"
