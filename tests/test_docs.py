"""The pages in ``docs``: every test and module that they name exists."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from ipamd.ctl import pages
from ipamd.ctl.main import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PROOFS = {"design.md", "security.md"}
"""The pages that claim what only a test can show."""


def named(page: Path) -> list[tuple[str, str]]:
    """The tests that a page names: a file or folder, and the function in it or an empty text."""
    return re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    """A page that claims a proof names one that is run."""
    assert named(page) or page.name not in PROOFS
    for file, function in named(page):
        path = ROOT / file
        assert path.exists(), f"{page.name} names {file}"
        if function:
            assert re.search(rf"^(async )?def {function}\(", path.read_text(), re.MULTILINE), f"{page.name}: {function}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_modules_that_a_page_names_exist(page: Path) -> None:
    """A reader who looks where the page points finds something."""
    for name in re.findall(r"`(?:ipamd/)?((?:core|api|journal|store|cni)/[\w/]+\.(?:py|c))`", page.read_text()):
        assert (ROOT / "ipamd" / name).exists(), f"{page.name} names {name}"


def test_every_invariant_is_attacked() -> None:
    """Each has at least two tests of its own."""
    sections = re.split(r"^## ", (ROOT / "docs" / "design.md").read_text(), flags=re.MULTILINE)[1:]
    assert [section.split(" ")[0] for section in sections] == [f"I{number}" for number in range(1, 8)]
    assert all(section.count("`tests/") >= 2 for section in sections)


@pytest.mark.parametrize(("page", "made"), [(pages.REFERENCE, pages.reference), (pages.MAN, pages.man)])
def test_the_pages_of_the_commands_are_up_to_date(page: Path, made: Callable[[], str]) -> None:
    """What is told of a command is its own help; ``make pages`` writes it."""
    assert page.read_text() == made(), f"{page.name} is out of date: run `make pages`"


def test_every_command_is_in_the_pages() -> None:
    """Each with its flags, and its examples as one types them."""
    reference, man = pages.reference(), pages.man()
    listed = [each for _title, section in pages.commands() for each in section]
    assert {"ipamctl get", "ipamctl ipam check", "ipamctl explain pod"} <= {words for words, _command in listed}
    for words, command in listed:
        assert f"\n### {words}\n" in reference
        assert "\n.SS " + words.replace("-", "\\-") in man
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert all(option in reference for option in parameter.opts)


def test_each_example_of_the_reference_is_understood() -> None:
    """Command, arguments and flags of every line are those of the program; nothing is run."""
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", pages.REFERENCE.read_text(), re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if line.startswith("ipamctl ")
    ]
    assert len(lines) > 80
    for line in lines:
        words = shlex.split(line.partition(" > ")[0].partition(" | ")[0], comments=True)
        command: click.Command = cli
        context, rest = click.Context(cli, info_name="ipamctl"), words[1:]
        while isinstance(command, click.Group):
            _name, found, rest = command.resolve_command(context, rest)
            assert found is not None, line
            command, context = found, click.Context(found, parent=context)
        command.parse_args(click.Context(command, resilient_parsing=False), rest)


def test_the_manual_page_is_printed_as_it_is_meant(tmp_path: Path) -> None:
    """Without a complaint, and examples with quotes and hyphens that a shell understands."""
    if shutil.which("groff") is None:
        pytest.skip("there is no groff to print it with")
    (tmp_path / "page.1").write_text(pages.man())
    command = ["groff", "-ww", "-man", "-Tutf8", "-rLL=200n", "-P-c", "-P-b", "-P-u", str(tmp_path / "page.1")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    example = """ipamctl patch ippool default-ipv4-ippool -p '{"spec": {"disabled": true}}'"""
    assert example in done.stdout
