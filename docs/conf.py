"""The site made of these pages by ``make docs``: Sphinx, reading their Markdown through MyST.

The pages stay plain Markdown, to be read on a forge as well: what the site's navigation needs is taken from the lists
of ``index.md``.
"""

import re

from sphinx.application import Sphinx

from ipamd import __version__

project = "ipamd"
version = release = __version__
extensions = ["myst_parser"]
myst_heading_anchors = 4  # as forges have them
exclude_patterns = ["*.1"]
highlight_language = "text"
html_theme = "furo"
html_title = f"ipamd {__version__}"
html_copy_source = False
html_show_copyright = False


def navigation(_app: Sphinx, page: str, source: list[str]) -> None:
    """Put the pages that a section of the index lists under its title in the navigation."""
    if page != "index":
        return
    for section in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        pages = re.findall(r"^- \[[^\]]+\]\(([\w/-]+)\.md\)", text, re.MULTILINE)
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```", ""])


def setup(app: Sphinx) -> None:
    """What Sphinx calls first."""
    app.connect("source-read", navigation)
