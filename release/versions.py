"""The version is said in one place, ``ipamd/__init__.py``; where it must be repeated, this compares.

The wheel, ``ipamd --version`` and the metric of the build read it there; the chart, the pages and the changelog cannot.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from packaging.version import Version

SOURCE = "ipamd/__init__.py"


def declared(tree: Path) -> str:
    """The version of the program in a tree."""
    (found,) = re.findall(r'^__version__ = "([^"]+)"$', (tree / SOURCE).read_text(), re.MULTILINE)
    return str(found)


def problems(tree: Path, tags: Sequence[str]) -> list[str]:
    """What contradicts the version in a tree whose commit has these tags: sentences, none if all agree."""
    version = declared(tree)
    found = []
    for file, pattern in (("helm/ipamd/Chart.yaml", r"^appVersion: (\S+)$"), ("docs/helm.md", r"/ipamd:([\w.]+)")):
        said = re.findall(pattern, (tree / file).read_text(), re.MULTILINE)
        found += [
            f"{file} says {each}, {SOURCE} {version}; correct the one"
            for each in dict.fromkeys(said)
            if each != version
        ]
    headings = re.findall(r"^## \[([^]]+)\](.*)$", (tree / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [(name, rest) for name, rest in headings if name != "Unreleased"]
    if released and Version(released[0][0]) > Version(version):
        found.append(f"CHANGELOG.md tells of {released[0][0]}, {SOURCE} of {version}; correct the one")
    wanted = [tag for tag in tags if tag.startswith("v")]
    if wanted and f"v{version}" not in wanted:
        found.append(f"its tag is {wanted[0]}, and {SOURCE} says {version}; tag it v{version}")
    if wanted and not any(re.fullmatch(r" - \d{4}-\d\d-\d\d", rest) for name, rest in released[:1] if name == version):
        found.append(f"CHANGELOG.md does not begin with a dated section [{version}]; make one of [Unreleased]")
    return found
