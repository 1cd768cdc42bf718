"""The command line itself: help, mistakes, what is spoken to, exit codes, completion."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from ipamd import __version__
from ipamd.ctl.main import COMMANDS, cli
from ipamd.host import lock_file
from tests.ctl.places import BehindSocket, Done, OnFile
from tests.etcd_process import EtcdProcess, free_port

Run = Callable[..., Done]
NAMES = [name for section in COMMANDS.values() for name in section]


@pytest.mark.parametrize("argv", [[], *([name] for name in NAMES)], ids=lambda argv: " ".join(argv) or "ipamctl")
def test_help_has_examples(ipamctl: Run, argv: list[str]) -> None:
    """Each command tells what it does, with examples."""
    done = ipamctl(*argv, "--help")
    assert (done.code, done.err) == (0, "")
    assert "Examples:\n  " in done.out


def commands(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    """The names that lead to each command below one."""
    if not isinstance(command, click.Group):
        yield path
        return
    for name in command.list_commands(click.Context(command)):
        inner = command.get_command(click.Context(command), name)
        assert inner is not None
        yield from commands(inner, *path, name)


@pytest.mark.parametrize("path", list(commands(cli)), ids=" ".join)
def test_the_examples_are_command_lines(ipamctl: Run, path: tuple[str, ...]) -> None:
    """Each example in the help of a command is a line that the command line takes."""
    _, _, examples = ipamctl(*path, "--help").out.partition("Examples:\n")
    lines = [line for line in re.findall(r"ipamctl [^|>\n]*", examples) if not line.startswith("ipamctl --help")]
    assert lines
    for line in lines:
        command, words = cli, shlex.split(line.rstrip(')"'))[1:]
        while True:
            context = command.make_context(command.name, words, resilient_parsing=False)
            if not isinstance(command, click.Group):
                break
            words = [*context._protected_args, *context.args]
            _name, command, words = command.resolve_command(context, words)


def test_help_lists_all_commands(ipamctl: Run) -> None:
    """The help of the whole names each command, by section."""
    listed = ipamctl("-h").out
    assert all(f"\n  {name} " in listed for name in NAMES)
    assert all(f"\n{section}:\n" in listed for section in COMMANDS)


MISTAKES = {
    "gte ippool": "unknown command 'gte'; did you mean get?",
    "get ipool": "Invalid value for 'KIND': there is no kind 'ipool'; did you mean ippool?; the kinds are ",
    "get": "Missing argument 'KIND'.",
    "get ippool -o table2": "'table2' is none of table, wide, yaml, json, name, jsonpath=, custom-columns=",
    "get ippool -o jsonpath=": "jsonpath needs a value, as jsonpath='{.items[*].metadata.name}'",
    "get ippool -o jsonpath={.a": "cannot read the template: '{' at character 1 has no partner",
    "get ippool --otput yaml": "No such option '--otput'",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_on_the_command_line(ipamctl: Run, line: str) -> None:
    """Exit code 2, and what is wrong with the nearest that would be right."""
    done = ipamctl("--socket", "/nonexistent", *line.split())
    assert (done.code, done.out) == (2, "")
    assert MISTAKES[line] in done.err


def test_columns_that_cannot_be_read(ipamctl: Run, daemon: BehindSocket) -> None:
    """A column is a title with a path, or one of the kind's own."""
    done = ipamctl(*daemon.flags, "get", "ippool", "-o", "custom-columns=NAM")
    assert done.code == 2
    assert "cannot read the columns: 'NAM' is not TITLE:PATH, nor one of the columns NAME, CIDR" in done.err


def test_without_a_daemon(ipamctl: Run, tmp_path: Path) -> None:
    """Exit code 3, the socket that was tried, and what else there is."""
    socket = tmp_path / "none.sock"
    done = ipamctl("--socket", str(socket), "get", "ippool")
    cause = "no such file or directory; start it, name another socket with --socket, or name a store with "
    told = f"ipamctl: cannot reach ipamd at {socket}: {cause}--etcd-endpoints or --db\n"
    assert done == (3, "", told)


def test_the_socket_is_that_of_the_configuration(
    ipamctl: Run, daemon: BehindSocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environment and configuration file name the socket, for the command as for the daemon."""
    monkeypatch.setenv("IPAMD_SOCKET", str(daemon.path))
    assert ipamctl("get", "ippool").code == 0
    monkeypatch.delenv("IPAMD_SOCKET")
    file = tmp_path / "other.toml"
    file.write_text(f'socket = "{daemon.path}"\n')
    assert ipamctl("get", "ippool", "--config", str(file)).code == 0
    file.write_text("sokcet = 1\n")
    done = ipamctl("--config", str(file), "get", "ippool")
    assert done.code == 2
    assert "unknown key" in done.err


def test_the_store_of_the_daemon_is_away(ipamctl: Run, daemon: BehindSocket) -> None:
    """Exit code 3 with the daemon's words, and so while it has not opened the store yet."""
    daemon.store.away = True
    done = ipamctl(*daemon.flags, "get", "ippool")
    assert done == (3, "", "ipamctl: cannot read the store: memory: away\n")
    daemon.open = False
    done = ipamctl(*daemon.flags, "get", "ippool")
    assert done == (3, "", "ipamctl: cannot read the store: it is not open yet; try again in a moment\n")


def test_etcd_is_away(ipamctl: Run) -> None:
    """Exit code 3, with the endpoint."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    done = ipamctl("get", "ippool", "--etcd-endpoints", endpoint)
    assert (done.code, done.out) == (3, "")
    assert f"cannot read etcd at {endpoint}: " in done.err


def test_etcd_refuses(ipamctl: Run, tmp_path: Path) -> None:
    """Exit code 1: etcd wants a login that was not given."""
    with EtcdProcess(tmp_path) as etcd:
        etcd.ctl("user", "add", "root:secret")
        etcd.ctl("user", "grant-role", "root", "root")
        etcd.ctl("auth", "enable")
        done = ipamctl("--etcd-endpoints", etcd.endpoint, "get", "ippool")
        assert done.code == 1
        assert "etcd has authentication enabled" in done.err
        password = tmp_path / "password"
        password.write_text("secret\n")
        login = ("--etcd-username", "root", "--etcd-password-file", str(password))
        assert ipamctl("--etcd-endpoints", etcd.endpoint, "get", "ippool", *login).code == 0


def test_a_file_that_a_daemon_has(ipamctl: Run, tmp_path: Path) -> None:
    """While a daemon has the embedded store's file, only it may change it: exit code 3 says so."""
    place = OnFile(tmp_path / "store.db")
    with lock_file(tmp_path / "store.db"):
        done = ipamctl(*place.flags, "get", "ippool")
    told = f"cannot open the store {tmp_path / 'store.db'}: a running ipamd has it; leave out --db to reach it through"
    assert (done.code, done.out) == (3, "")
    assert done.err == f"ipamctl: {told} the daemon\n"
    assert ipamctl(*place.flags, "get", "ippool").code == 0


def test_a_file_that_is_not_there(ipamctl: Run, tmp_path: Path) -> None:
    """No new store is made where none is."""
    done = ipamctl("--db", str(tmp_path / "none"), "get", "ippool")
    told = f"cannot open the store {tmp_path / 'none'}: there is no such file; name that of embedded.path"
    assert done == (3, "", f"ipamctl: {told}\n")
    assert not (tmp_path / "none").exists()


def test_a_daemon_is_not_asked_for_a_store(ipamctl: Run, tmp_path: Path) -> None:
    """``version`` with a store to work on has no daemon to ask; alone it tells where none is."""
    assert ipamctl("version", "--client") == (0, f"ipamctl {__version__}\n", "")
    done = ipamctl("--socket", str(tmp_path / "none"), "version")
    assert (done.code, done.out) == (3, f"ipamctl {__version__}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(ipamctl: Run, shell: str) -> None:
    """The script of each shell calls the program back."""
    assert f"_IPAMCTL_COMPLETE={shell}_complete" in ipamctl("completion", shell).out


@pytest.mark.parametrize(
    ("words", "found"),
    [("ipamctl ge", ["get"]), ("ipamctl get ipp", ["ippool"]), ("ipamctl get ippool -o js", ["json", "jsonpath="])],
)
def test_what_completion_finds(words: str, found: list[str]) -> None:
    """Commands, kinds and forms of output are completed."""
    from click.shell_completion import BashComplete

    *before, last = words.split()[1:]
    completed = BashComplete(cli, {}, "ipamctl", "_IPAMCTL_COMPLETE").get_completions(before, last)
    assert [item.value for item in completed] == found


def test_who_reads_may_stop_early(daemon: BehindSocket) -> None:
    """``ipamctl get ... | head -0`` ends quietly."""
    line = f"{sys.executable} -m ipamd.ctl --socket {daemon.path} get ippool"
    done = subprocess.run(
        ["sh", "-c", f"{{ {line}; echo $? >&2; }} | true"], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stderr == "0\n"


def test_help_is_quick() -> None:
    """Help and completion load no event loop, no store and no YAML."""
    script = "import sys; from ipamd.ctl.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"trio", "grpc", "yaml", "sqlite3", "httpx"} & set(done.stderr.split())
