"""kubectl's JSONPath templates: text with expressions in braces, ``{range}`` and ``{end}``.

An expression is a path (``.items[0].metadata.name``, ``[*]``, ``[1:3]``, ``['a.b']``, ``..name``, ``@``, ``$``,
``[?(@.spec.node=="a")]``) or a text in double quotes with JSON's escapes. Several values of one path are joined with
blanks; a path that leads nowhere gives nothing. Source: "JSONPath Support" of the Kubernetes reference. No library of
the language has kubectl's templates.

Pure: knows nothing of commands.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from operator import ge, gt, le, lt
from typing import Any

from msgspec import Struct

Step = Callable[[Any], Iterator[Any]]


class TemplateError(ValueError):
    """A template that cannot be read; the text says what stands where (from 1)."""


class Path(Struct, frozen=True):
    """Steps from a value to others; ``absolute``: from the whole document, even inside a range."""

    steps: tuple[Step, ...]
    absolute: bool = False

    def find(self, value: Any) -> list[Any]:
        """All values that it leads to."""
        found = [value]
        for step in self.steps:
            found = [inner for outer in found for inner in step(outer)]
        return found


class _Range(Struct, frozen=True):
    path: Path
    parts: "list[str | Path | _Range]"


Part = str | Path | _Range


def parse_template(text: str) -> list[Part]:
    """Read a template; raises TemplateError."""
    root: list[Part] = []
    open_ranges: list[list[Part]] = [root]
    at = 0
    for found in _EXPRESSION.finditer(text):
        _plain(text, at, found.start(), open_ranges[-1])
        at, inner = found.end(), found[1].strip()
        where = found.start() + 1
        if inner == "end":
            if len(open_ranges) == 1:
                raise TemplateError(f"{{end}} at character {where} ends no {{range}}")
            open_ranges.pop()
        elif inner.startswith("range"):
            block = _Range(parse_path(inner.removeprefix("range").strip(), where), [])
            open_ranges[-1].append(block)
            open_ranges.append(block.parts)
        elif inner.startswith(('"', "'")):
            open_ranges[-1].append(_quoted(inner, where))
        else:
            open_ranges[-1].append(parse_path(inner, where))
    _plain(text, at, len(text), open_ranges[-1])
    if len(open_ranges) > 1:
        raise TemplateError("a {range} has no {end}")
    return root


def expand(parts: Sequence[Part], document: Any) -> str:
    """What a template gives for a document."""
    return "".join(_expand(parts, document, document))


def _expand(parts: Sequence[Part], document: Any, value: Any) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Path):
            yield " ".join(printed(each) for each in part.find(document if part.absolute else value))
        else:
            for each in part.path.find(document if part.path.absolute else value):
                yield from _expand(part.parts, document, each)


def printed(value: Any) -> str:
    """A value as kubectl prints it: texts bare, what has parts as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


_EXPRESSION = re.compile(r"""\{((?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^{}"'])*)\}""")
_STEP = re.compile(
    r"""(?P<deep>\.\.)?
    (?:\.?(?P<name>(?:[\w/:-]|\\.)+)|(?P<all>\.?\*)
    |\[(?:(?P<quoted>'[^']*'(?:\s*,\s*'[^']*')*)
      |(?P<index>-?\d+(?:\s*,\s*-?\d+)*)|(?P<slice>-?\d*:-?\d*(?::\d*)?)|(?P<every>\*)
      |\?\((?P<filter>(?:"[^"]*"|'[^']*'|[^)"'])*)\))\])""",
    re.VERBOSE,
)
_COMPARISON = re.compile(r"(@[^=!<>\s]*)\s*(?:(==|!=|<=|>=|<|>)\s*(.+?))?")


def _plain(text: str, start: int, end: int, parts: list[Part]) -> None:
    between = text[start:end]
    stray = next((index for index, character in enumerate(between) if character in "{}"), None)
    if stray is not None:
        raise TemplateError(f"{between[stray]!r} at character {start + stray + 1} has no partner")
    if between:
        parts.append(between)


def _quoted(text: str, where: int) -> str:
    try:
        value = json.loads(f'"{text[1:-1]}"' if text[0] == text[-1] else "")
    except ValueError:
        raise TemplateError(f"{text} at character {where} is no text in quotes") from None
    return str(value)


def parse_path(text: str, where: int = 1) -> Path:
    """Read a path; ``where`` it begins is for the error. Raises TemplateError."""
    rest, absolute = text, text.startswith("$")
    if rest[:1] in ("@", "$"):
        rest = rest[1:]
    steps: list[Step] = []
    while rest and rest != ".":
        found = _STEP.match(rest)
        if found is None or not found.end():
            raise TemplateError(f"cannot read {rest!r} in the path at character {where}")
        if found["deep"]:
            steps.append(_descend)
        steps.append(_step(found, where))
        rest = rest[found.end() :]
    return Path(tuple(steps), absolute)


def _step(found: re.Match[str], where: int) -> Step:
    if found["name"]:
        return _member(re.sub(r"\\(.)", r"\1", found["name"]))
    if found["quoted"]:
        return _members(re.findall(r"'([^']*)'", found["quoted"]))
    if found["index"]:
        return _elements([int(number) for number in found["index"].split(",")])
    if found["slice"]:
        return _slice(slice(*(int(number) if number else None for number in found["slice"].split(":"))))
    if found["filter"]:
        return _filter(found["filter"].strip(), where)
    return _every


def _member(name: str) -> Step:
    return _members([name])


def _members(names: Sequence[str]) -> Step:
    return lambda value: iter([value[name] for name in names if isinstance(value, dict) and name in value])


def _elements(indexes: Sequence[int]) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            yield from (value[index] for index in indexes if -len(value) <= index < len(value))

    return step


def _slice(wanted: slice) -> Step:
    return lambda value: iter(value[wanted] if isinstance(value, list) else ())


def _every(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _descend(value: Any) -> Iterator[Any]:
    yield value
    for inner in _every(value):
        yield from _descend(inner)


def _filter(text: str, where: int) -> Step:
    found = _COMPARISON.fullmatch(text)
    if found is None:
        raise TemplateError(f"cannot read the filter {text!r} at character {where}; write as ?(@.spec.node=='a')")
    path, operator, literal = parse_path(found[1], where), found[2], found[3]
    wanted = _literal(literal, where) if literal is not None else None

    def holds(value: Any) -> bool:
        values = path.find(value)
        return bool(values) if operator is None else any(_compares(each, operator, wanted) for each in values)

    return lambda value: (each for each in _every(value) if holds(each))


def _literal(text: str, where: int) -> Any:
    if text[0] in "\"'":
        return _quoted(text, where)
    try:
        return json.loads(text)
    except ValueError:
        raise TemplateError(f"cannot compare with {text} at character {where}; put a text in quotes") from None


_ORDERS: dict[str, Callable[[Any, Any], Any]] = {"<": lt, "<=": le, ">": gt, ">=": ge}


def _compares(value: Any, operator: str, wanted: Any) -> bool:
    if operator in ("==", "!="):
        return (value == wanted) is (operator == "==")
    if isinstance(value, str) != isinstance(wanted, str) or not isinstance(value, str | int | float):
        return False
    return bool(_ORDERS[operator](value, wanted))
