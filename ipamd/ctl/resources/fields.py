"""The fields of resources: which there are, of which type, in which order Go's programs write them; how two differ."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ipamd.config import suggest

Fields = Mapping[str, str]
"""The fields of an object in Calico's order, each with what its value must be (a key of ``_HOLDS``)."""

TEXT, WHOLE, BOOLEAN, TEXTS, LABELS, ANY = "a text", "a whole number", "true or false", "a list of texts", "labels", ""

_HOLDS: Mapping[str, Callable[[Any], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    WHOLE: lambda value: isinstance(value, int) and not isinstance(value, bool),
    BOOLEAN: lambda value: isinstance(value, bool),
    TEXTS: lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    LABELS: lambda value: isinstance(value, dict) and all(isinstance(each, str) for each in value.values()),
    ANY: lambda _value: True,
}
_SAID = {LABELS: "names with texts (write numbers in quotes)", TEXTS: "a list of texts (write numbers in quotes)"}

METADATA: Fields = {
    "name": TEXT,
    "generateName": TEXT,
    "namespace": TEXT,
    "selfLink": TEXT,
    "uid": TEXT,
    "resourceVersion": TEXT,
    "generation": WHOLE,
    "creationTimestamp": ANY,
    "deletionTimestamp": ANY,
    "deletionGracePeriodSeconds": ANY,
    "labels": LABELS,
    "annotations": LABELS,
    "ownerReferences": ANY,
    "finalizers": TEXTS,
    "managedFields": ANY,
}
"""ObjectMeta of Kubernetes."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LONGEST_NAME = 253


def bad_fields(path: str, value: Any, fields: Fields, stored: Any = None) -> Iterator[str]:
    """What is wrong with an object's fields; one that is not known passes if the stored object has it too."""
    if value is None:
        return
    if not isinstance(value, dict):
        yield f"{path} must be an object, not {_shown(value)}"
        return
    for name, inner in value.items():
        if name not in fields:
            if not isinstance(stored, dict) or name not in stored:
                yield f"{path}.{name} is not known{suggest(name, fields) or _listed(fields)}"
        elif inner is not None and not _HOLDS[fields[name]](inner):
            yield f"{path}.{name} must be {_SAID.get(fields[name], fields[name])}, not {_shown(inner)}"


def _listed(fields: Fields) -> str:
    return f"; the fields are {', '.join(fields)}"


def bad_name(name: Any) -> Iterator[str]:
    """What is wrong with a resource's name."""
    if not isinstance(name, str) or not name:
        yield "metadata.name is missing"
    elif len(name) > LONGEST_NAME:
        over = len(name) - LONGEST_NAME
        yield f"metadata.name is {over} characters too long; {LONGEST_NAME} are the most"
    elif not _NAME.fullmatch(name):
        yield (
            f"metadata.name {name!r} may have lower case letters, digits, '-' and '.' only, "
            "and begins and ends with a letter or digit"
        )


def ordered(value: Mapping[str, Any], fields: Sequence[str] | Fields) -> dict[str, Any]:
    """An object with its fields in Calico's order, those that are not known after them."""
    return {name: value[name] for name in (*(n for n in fields if n in value), *(n for n in value if n not in fields))}


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """How a value differs from one before it, field by field: ``spec.disabled: false -> true``."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            yield from differences(before.get(name), after.get(name), f"{path}.{name}" if path else name)
    elif before != after:
        yield f"{path}: {_shown(before)} -> {_shown(after)}"


def _shown(value: Any) -> str:
    import json

    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
