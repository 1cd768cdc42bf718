"""The fenced blocks of a page, and those of them that are commands to run. Python's own library and nothing else.

A block is left out only below an HTML comment ``<!-- test: skip, reason -->``.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SKIP = re.compile(r"<!-- test: skip(?:, (?P<reason>[^>]+?))? -->\n$")


class Block(NamedTuple):
    """A fenced block: its language, its text, and the comment right above it that says to leave it out."""

    language: str
    text: str
    skip: re.Match[str] | None


def blocks(text: str) -> Iterator[Block]:
    """All fenced blocks of a document, in order."""
    for found in _FENCE.finditer(text):
        yield Block(found[1], found[2], _SKIP.search(text[: found.start()]))


def commands(text: str) -> list[str]:
    """The ``sh`` blocks to run."""
    return [block.text for block in blocks(text) if block.language == "sh" and not block.skip]
