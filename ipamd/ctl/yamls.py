"""YAML as Calico's tools read and print it; the only module that knows PyYAML.

Times stay texts, a key twice is an error; what is printed reads back as the same values with Go's libraries and ours.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml


class YamlError(ValueError):
    """Text that is not YAML, or not such as a record can be; the text says where and why."""


class _Loader(yaml.SafeLoader):
    """Without times, whose text would be lost, and without keys that stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's
        seen = set()
        for key, _value in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} is no text; put it in quotes", key.start_mark
                )
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", key.start_mark)
            seen.add(name)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_all(text: str) -> Iterator[Any]:
    """The documents of a text, empty ones left out. Raises YamlError."""
    try:
        for document in yaml.load_all(text, _Loader):
            if document is not None:
                yield document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlError(f"{where}{error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise YamlError(str(error) or "it nests too deep") from None


class _Dumper(yaml.SafeDumper):
    """Texts that YAML would take for something else in double quotes, as Go's library has them."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


_NUMBERS = re.compile(r"[-+]?(\.?\d[\d_]*(\.\d*)?([eE][-+]?\d+)?|0[xob][\da-fA-F_]+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)")
_WORDS = frozenset({"y", "n", "", "~", "=", "<<"})
_RESOLVER = yaml.resolver.Resolver()


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    tag = "tag:yaml.org,2002:str"
    other = _RESOLVER.resolve(yaml.ScalarNode, value, (True, False)) != tag  # type: ignore[no-untyped-call]
    odd = any(not character.isprintable() and character != "\n" for character in value)
    if other or odd or value.lower() in _WORDS or _NUMBERS.fullmatch(value):
        return dumper.represent_scalar(tag, value, style='"')
    return dumper.represent_scalar(tag, value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def dump(document: object) -> str:
    """A document, its keys sorted."""
    text: str = yaml.dump(document, Dumper=_Dumper, allow_unicode=True, width=1 << 30, default_flow_style=False)
    return text
