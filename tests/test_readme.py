"""README.md and the pages in docs say what is so: commands are run, tables compared with the code, links followed.

Each fenced ``sh`` block of the README and of the pages right in docs is run in a newcomer's copy of the checkout, in
order, each in a shell of its own, beside the daemon that ``make run`` starts; curl fails there for an error status. A
block is left out only below an HTML comment ``<!-- test: skip, reason -->``.
"""

import ipaddress
import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import click
import pytest

from ipamd.api import cni
from ipamd.api.http import Request
from ipamd.api.result import ResultAddress, result
from ipamd.config import KEYS
from ipamd.core.errors import Code
from ipamd.ctl.main import cli
from tests.daemon_process import UnixConnection
from tests.make_process import Checkout, MakeRun, make_run
from tests.readme import blocks, commands

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = {page: page.read_text() for page in (README, *DOCS)}
TEXT = "\n".join(PAGES.values())
HERE = [page for page in PAGES if page.parent in (ROOT, ROOT / "docs")]
"""The pages whose commands are run here; those of the folders below want more than one node, see tests/docs."""

READING = 170
"""Lines that a newcomer reads in five minutes; what is longer belongs on a page of its own."""

DRY = {"make test": "make -n test", "make bench": "make -n bench"}
"""Only looked at, that make knows what to do: the first would run this test again, the second takes minutes."""


def section(title: str) -> str:
    """The text below a heading of one page, up to the next one of any level."""
    (page,) = [text for text in PAGES.values() if f"# {title}\n" in text]
    _, _, rest = page.partition(f"# {title}\n")
    return "\n".join(takewhile(lambda line: not line.startswith("#"), rest.splitlines()))


def first_column(title: str) -> list[str]:
    """What the first column of the section's last table names: its words in backticks, else its words."""
    rows = [line.split("|")[1].strip() for line in section(title).splitlines() if line.startswith("|")]
    assert len(rows) > 2, f"the section {title!r} has no table"
    return [word for row in rows[2:] for word in re.findall(r"`([^`]+)`", row) or re.split(r", ?", row)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A newcomer's copy, in which curl fails for an error status."""
    for program in ("make", "curl"):
        if shutil.which(program) is None:
            pytest.fail(f"cannot run the README's commands without {program}; install it")
    made = Checkout(tmp_path_factory.mktemp("run"))
    (made.path / ".curlrc").write_text("fail\nmax-time = 10\n")
    return made


@pytest.fixture(scope="module")
def running(checkout: Checkout) -> Iterator[MakeRun]:
    """The daemon that ``make run`` starts."""
    with make_run(checkout) as started:
        started.lines()
        yield started


def run_block(checkout: Checkout, text: str) -> str:
    """Run a block in a shell that stops at the first command that fails; returns what it printed."""
    script = "\n".join(DRY.get(line.strip(), line) for line in text.splitlines())
    done = checkout.run("sh", "-euxc", script)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.real
def test_the_first_answer_is_the_one_shown(checkout: Checkout, running: MakeRun) -> None:
    """A newcomer who pastes the first line sees what the README shows."""
    (shown,) = [block.text for block in blocks(PAGES[README]) if block.language == "json"]
    assert checkout.paste(running.lines()[0]).stdout.split() == shown.split()


@pytest.mark.real
def test_the_commands_work(checkout: Checkout, running: MakeRun) -> None:
    """Every command of the README and the pages does what it should, one after the other."""
    listed = [text for page in HERE for text in commands(PAGES[page])]
    assert "make run\n" in commands(PAGES[README]), "the first command is missing"
    for text in listed:
        if text != "make run\n":
            run_block(checkout, text)
    assert running.alive


@pytest.mark.real
def test_the_metrics_are_those_listed(checkout: Checkout, running: MakeRun) -> None:
    """Each metric that the daemon has is in the table, and the table names no other."""
    assert running.alive
    connection = UnixConnection(checkout.path / ".run" / "ipamd.sock")
    connection.request("GET", "/metrics")
    types = re.findall(r"^# TYPE (\w+)", connection.getresponse().read().decode(), re.MULTILINE)
    connection.close()
    assert set(first_column("Metrics")) == {name for name in types if not name.endswith("_created")}


def test_what_is_not_run_has_its_reason() -> None:
    """A block is left out only with words that say why."""
    skipped = [block for block in blocks(TEXT) if block.skip]
    assert all(block.skip and block.skip["reason"] for block in skipped)
    assert TEXT.count("<!-- test:") == len(skipped), "a comment that is not right above a block"


def test_blocks_are_found_and_left_out_as_told() -> None:
    """The rules that this module applies, on a document of its own."""
    skip = "<!-- test: skip, needs a cluster -->\n"
    text = f"a\n\n```sh\none\n```\n\n{skip}```sh\ntwo\n```\n```json\n{{}}\n```\n```sh\nthree\n```\n"
    assert commands(text) == ["one\n", "three\n"]
    assert [block.skip["reason"] for block in blocks(text) if block.skip] == ["needs a cluster"]


def test_the_keys_are_those_of_the_configuration() -> None:
    """Each key of the configuration is in the table, and the table names no other."""
    listed = first_column("Configuration")
    assert sorted(listed) == sorted(KEYS)


def ctl_commands(command: click.Command) -> Iterator[click.Command]:
    """A command of ``ipamctl`` and all below it."""
    yield command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            yield from ctl_commands(inner)


def test_the_flags_and_variables_exist() -> None:
    """What a page says to type or to set is known to the program."""
    flags = {key.flag for key in KEYS.values()} | {"--config", "--demo", "--print-config", "--check-config", "--as"}
    flags |= {option for command in ctl_commands(cli) for each in command.params for option in each.opts} | {"--help"}
    ours = [
        line
        for line in re.findall(r"`([^`\n]+)`|^(?:/opt/ipamd/bin/)?(ipamd .*)$", TEXT, re.MULTILINE)
        for line in line
    ]
    used = {
        flag
        for line in ours
        if line.startswith(("ipamd", "ipamctl", "--"))
        for flag in re.findall(r"--[a-z][a-z0-9-]*", line)
    }
    assert used
    assert used <= flags
    variables = set(re.findall(r"\bIPAMD_\w+", TEXT))
    plugins = set(re.findall(r'"(IPAMD_\w+)"', (ROOT / "ipamd/cni/ipamd-cni.c").read_text()))
    assert variables <= {key.environment for key in KEYS.values()} | plugins


def test_the_errors_are_those_of_the_code() -> None:
    """Each CNI code that ipamd may answer is in the table, and the table names no other."""
    assert sorted(int(code) for code in first_column("Errors")) == sorted(Code)


def test_the_packages_are_those_that_are_installed() -> None:
    """The README names each package of the system that ``make test`` installs, and no other."""
    everywhere, _, _ = (ROOT / "tests" / "system.sh").read_text().partition("if [")
    needed = [name for found in re.findall(r"\|\| need (.+)$", everywhere, re.MULTILINE) for name in found.split()]
    _, *named = re.findall(r"Debian:\s`([^`]+)`", PAGES[README])
    assert [names.split() for names in named] == [needed]


def test_the_dependencies_are_explained() -> None:
    """Each package that ipamd needs to run has its line, and no other."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [match[0] for package in needed if (match := re.match(r"[A-Za-z0-9._-]+", package))]
    assert sorted(first_column("Dependencies")) == sorted(names)


def linked(page: Path) -> set[Path]:
    """The pages that a page links to."""
    targets = re.findall(r"\]\(([\w./-]+\.md)(?:#[\w-]+)?\)", PAGES[page])
    return {(page.parent / target).resolve() for target in targets}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_lead_somewhere(page: Path) -> None:
    """Each relative link of a page names a file of the checkout, each anchor a heading."""
    anchors = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", PAGES[page], re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        if ":" in path:
            continue
        assert not path or (page.parent / path).exists(), target
        assert path or anchor in anchors, target


def test_a_newcomer_finds_every_page() -> None:
    """The README is read in five minutes and leads to all the rest, by at most one page between."""
    assert len(PAGES[README].splitlines()) <= READING
    near = linked(README)
    found = near.union(*(linked(page) for page in near))
    assert [page.name for page in DOCS if page not in found] == []


def test_the_files_they_name_exist() -> None:
    """A file or a folder that is named by its path is where a page says, if it is not one that is made."""
    made = (ROOT / ".gitignore").read_text().split()
    named = re.findall(r"`((?:[\w-]+/)+(?:[\w-]+\.(?:py|c|toml|sh|service|yaml))?)`", TEXT)
    assert named
    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / "ipamd" / name).exists()]
    assert [name for name in missing if name not in made] == []


def test_the_network_configurations_can_be_used() -> None:
    """A network configuration to copy is understood; one of ptp puts its IPv4 gateway on the pod's link."""
    shown = [block.text for block in blocks(TEXT) if block.language == "json" and '"ipam"' in block.text]
    assert shown
    for text in shown:
        config = cni.read_config(Request("POST", "/v1/cni", "", {}, text.encode(), keep_alive=False))
        answer = json.loads(result(config, [ResultAddress(4, "10.244.7.64", 26)]))
        if json.loads(text).get("type") == "ptp":
            (entry,) = answer["ips"]
            link = ipaddress.ip_interface(entry["address"]).network
            assert ipaddress.ip_address(entry["gateway"]) in link, entry
