"""Selectors: Calico's expressions over labels, parsed once into a flat program.

``rack == "0" && !has(spare) || zone in {'a', 'b'}``; ``||`` binds loosest, then ``&&``, then ``!``. Neither parsing nor
matching recurses: how deep a selector nests is its author's choice, how deep the stack is is not.

Grammar and meaning are Calico's ("EntityRule selectors" of its reference): strings have no escapes, an absent label
makes ``!=`` and ``not in`` true and every other comparison false, an empty selector matches everything.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from msgspec import Struct

_SHOWN = 100
"""Characters of a selector that an error repeats: a record may hold a megabyte of them."""


class SelectorError(ValueError):
    """A selector that cannot be read; the text says what was expected, at which character (from 1), and what it is."""


class Comparison(Struct, frozen=True):
    """One comparison: an operator, the label it looks at, and what it compares with."""

    operator: str
    label: str = ""
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether it holds for these labels."""
        if self.operator == "all":
            return True
        value = labels.get(self.label)
        if value is None:
            return self.operator in _TRUE_IF_ABSENT
        return _OPERATORS[self.operator](value, self.values)


_OPERATORS: dict[str, Callable[[str, tuple[str, ...]], bool]] = {
    "has": lambda _value, _values: True,
    "==": lambda value, values: value in values,
    "!=": lambda value, values: value not in values,
    "in": lambda value, values: value in values,
    "not in": lambda value, values: value not in values,
    "contains": lambda value, values: values[0] in value,
    "starts with": lambda value, values: value.startswith(values[0]),
    "ends with": lambda value, values: value.endswith(values[0]),
}
_TRUE_IF_ABSENT = ("!=", "not in")
_ALL = Comparison("all")


class Selector(Struct, frozen=True):
    """A selector as it was written, and its program: comparisons, and after them the operators that join them."""

    text: str
    program: tuple[Comparison | str, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether it selects what has these labels."""
        stack: list[bool] = []
        for step in self.program:
            if isinstance(step, Comparison):
                stack.append(step.matches(labels))
            elif step == "!":
                stack[-1] = not stack[-1]
            else:
                right = stack.pop()
                stack[-1] = (stack[-1] and right) if step == "&&" else (stack[-1] or right)
        return stack[0]

    @property
    def selects_all(self) -> bool:
        """Whether it says in so many words that it selects everything: empty, ``all()`` or ``global()``."""
        return self.program == (_ALL,)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that it looks at, each once, in the order in which it names them."""
        looked_at = (step.label for step in self.program if isinstance(step, Comparison) and step.label)
        return tuple(dict.fromkeys(looked_at))

    def __str__(self) -> str:
        return shortened(self.text)


def shortened(text: str) -> str:
    """A selector as it may stand in a message."""
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


_LABELS = re.compile(r"([A-Za-z0-9_./-]+)=([A-Za-z0-9_.-]*)")


def parse_labels(text: str) -> dict[str, str]:
    """Labels written as ``rack=0,zone=b``; raises ValueError, whose text reads on from the name of what held them."""
    labels: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        found = _LABELS.fullmatch(part)
        if found is None:
            raise ValueError(f"must be labels as rack=0,zone=b, not {json.dumps(part[:64])}")
        if found[1] in labels:
            raise ValueError(f"must give each label once, not {found[1][:64]} again")
        labels[found[1]] = found[2]
    return labels


_RANK = {"(": 0, "||": 1, "&&": 2, "!": 3}
"""How tightly an operator binds; an open parenthesis holds back all that came before it."""


def parse_selector(text: str) -> Selector:
    """Read a selector; raises SelectorError."""
    reader = _Reader(text)
    if reader.ended():
        return Selector(text, (_ALL,))
    program: list[Comparison | str] = []
    pending: list[str] = []  # operators whose right side is not complete, and open parentheses
    depth = 0

    def settle(rank: int) -> None:
        while pending and _RANK[pending[-1]] >= rank:
            program.append(pending.pop())

    while True:
        while opening := reader.take(_OPENING):
            pending.append(opening)
            depth += opening == "("
        program.append(reader.comparison())
        while depth and reader.take(_CLOSING):
            settle(1)
            pending.pop()
            depth -= 1
        joint = reader.take(_JOINT)
        if joint:
            settle(_RANK[joint])
            pending.append(joint)
        elif reader.ended() and not depth:
            settle(0)
            return Selector(text, tuple(program))
        else:
            reader.refuse("&&, || or )" if depth else "&&, || or the end")


def _form(pattern: str) -> re.Pattern[str]:
    """A part of a selector, with the blanks after it, which never matter."""
    return re.compile(rf"({pattern})\s*")


_OPENING = _form(r"!|\(")
_CLOSING = _form(r"\)")
_JOINT = _form(r"&&|\|\|")
_FUNCTION = _form(r"(?:has|all|global)\(")
_LABEL = _form(r"[A-Za-z0-9_./-]+")
_OPERATOR = _form(r"==|!=|in|contains|(?:starts|ends)\s*with|not\s*in")
_STRING = _form(r"\"[^\"]*\"|'[^']*'")
_SET_OPENING, _SET_CLOSING, _COMMA = _form("{"), _form("}"), _form(",")
_OPERATOR_WORDS = {"startswith": "starts with", "endswith": "ends with", "notin": "not in"}


class _Reader:
    """A text, and how far it has been read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = len(text) - len(text.lstrip())

    def ended(self) -> bool:
        """Whether all of it has been read."""
        return self._at == len(self._text)

    def take(self, form: re.Pattern[str]) -> str:
        """What stands here if it has this form, else ""."""
        found = form.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[1]

    def refuse(self, expected: str) -> NoReturn:
        """Say that something else was expected here."""
        rest = self._text[self._at : self._at + 20]
        quote = "'" if '"' in rest else '"'
        found = f"{quote}{rest}{quote}" if rest else "the end"
        raise SelectorError(f"expected {expected} at character {self._at + 1}, not {found}")

    def comparison(self) -> Comparison:
        """The comparison that stands here."""
        function = self.take(_FUNCTION).removesuffix("(")
        if function:
            label = self._expect(_LABEL, "a label's name") if function == "has" else ""
            self._expect(_CLOSING, ")")
            return Comparison("has", label) if label else _ALL
        label = self._expect(_LABEL, "a label's name, has(), all(), global(), ! or (")
        operator = self._expect(_OPERATOR, "==, !=, in, not in, contains, starts with or ends with")
        operator = _OPERATOR_WORDS.get("".join(operator.split()), operator)
        return Comparison(operator, label, self._set() if operator in ("in", "not in") else (self._string(),))

    def _set(self) -> tuple[str, ...]:
        self._expect(_SET_OPENING, "{")
        values = []
        while not self.take(_SET_CLOSING):
            values.append(self._string("a value in quotes or }"))
            if not self.take(_COMMA):
                self._expect(_SET_CLOSING, ", or }")
                break
        return tuple(values)

    def _string(self, expected: str = "a value in quotes") -> str:
        if self._text[self._at : self._at + 1] in ("'", '"'):
            expected = "a value in quotes, with the second quote"
        return self._expect(_STRING, expected)[1:-1]

    def _expect(self, form: re.Pattern[str], expected: str) -> str:
        found = self.take(form)
        if not found:
            self.refuse(expected)
        return found
