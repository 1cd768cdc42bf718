"""The pages in ``docs``: every test and module that they name exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
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
