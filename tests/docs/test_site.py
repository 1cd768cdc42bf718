"""The site that ``make docs`` builds: without a warning, and every link in it leads somewhere."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.walk import DOCS, LONG, ROOT


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Run what the Makefile runs."""
    (recipe,) = re.findall(r"^docs:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    words = recipe.replace("$(BIN)/python", sys.executable).replace("$(RUN)/site", str(target)).split()
    command = [str(source) if word == "docs" else word for word in words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    target = tmp_path_factory.mktemp("site")
    done = build(DOCS, target)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return target


class Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.anchors |= {value for name, value in attrs if name == "id" and value}
        self.links += [value for name, value in attrs if name in ("href", "src") and value]


def test_every_link_and_anchor_of_the_site_leads_somewhere(site: Path) -> None:
    """Of the pages and of what the theme puts around them; nothing is loaded from another host."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    followed = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "data", "mailto"):
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            assert target.is_file(), f"{path.name}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.name}: {link}"
                followed += 1
    assert followed > 100


def test_nothing_of_a_page_is_loaded_from_another_host(site: Path) -> None:
    """The site can be read on a machine that reaches nothing else."""
    for path in site.rglob("*.html"):
        assert re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', path.read_text()) == []


def test_the_navigation_has_each_page_under_its_kind(site: Path) -> None:
    """In the order of the index."""
    front = (site / "index.html").read_text()
    captions = re.findall(r'<p class="caption"[^>]*><span class="caption-text">([^<]+)</span></p>', front)
    assert captions == re.findall(r"^## (.*)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    tree = front[front.index('<div class="sidebar-tree">') :]
    tree = tree[: tree.index("</aside>")]
    listed = re.findall(r'class="reference internal" href="([\w/-]+)\.html"', tree)
    assert sorted(listed) == sorted(
        str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md") if path.name != "index.md"
    )


@LONG
@pytest.mark.parametrize(
    "line",
    [
        "[a page](nowhere.md)",
        "[a heading](#nowhere)",
        "[another's](other.md#nowhere)",
        "![a picture](nowhere.svg)",
        "# Two\n\n#### Four",
    ],
)
def test_a_mistake_ends_the_build(tmp_path: Path, line: str) -> None:
    """No link that leads nowhere, and no page that is wrongly made, is published."""
    shutil.copy(DOCS / "conf.py", tmp_path)
    (tmp_path / "index.md").write_text("# Index\n\n## Some\n\n- [Page](page.md): one\n- [Other](other.md): two\n")
    (tmp_path / "other.md").write_text("# Other\n")
    (tmp_path / "page.md").write_text(f"# Page\n\n{line}\n")
    assert build(tmp_path, tmp_path / "site").returncode != 0


@LONG
def test_a_page_that_the_index_does_not_list_ends_the_build(tmp_path: Path) -> None:
    """No page is lost."""
    shutil.copy(DOCS / "conf.py", tmp_path)
    (tmp_path / "index.md").write_text("# Index\n\n## Some\n\n- [Page](page.md): one\n")
    (tmp_path / "page.md").write_text("# Page\n")
    assert build(tmp_path, tmp_path / "site").returncode == 0
    (tmp_path / "lost.md").write_text("# Lost\n")
    assert build(tmp_path, tmp_path / "site").returncode != 0
