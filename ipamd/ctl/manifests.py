"""Files of resources: YAML or JSON, several documents, arrays, lists of a kind, folders, standard input."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from ipamd.config import suggest
from ipamd.ctl.errors import CommandError
from ipamd.ctl.resources.kind import API, Kind, Resource

VERSIONS = (API, "crd.projectcalico.org/v1")
"""What ``apiVersion`` may say: Calico's API, or that of its custom resources in Kubernetes."""
_SUFFIXES = (".yaml", ".yml", ".json")


class Manifest(Struct, frozen=True):
    """One resource as a file has it, its kind, and where it stands there, for messages."""

    kind: Kind
    resource: Resource
    where: str

    @property
    def name(self) -> str:
        """The resource's name; "" if it has none."""
        metadata = self.resource.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        return name if isinstance(name, str) else ""


def read_manifests(paths: Sequence[str], kinds: Sequence[Kind]) -> list[Manifest]:
    """All resources of files, folders (their YAML and JSON files, by name) and ``-``. Raises CommandError."""
    found = []
    for path in paths:
        documents = [(where, each) for where, text in _texts(path) for each in _documents(where, text)]
        if not documents:
            raise CommandError(f"cannot read {_called(path)}: it has no resource; give YAML or JSON of at least one")
        found += [_manifest(where, each, kinds) for where, each in documents]
    return found


def _called(path: str) -> str:
    return "standard input" if path == "-" else path


def _texts(path: str) -> Iterator[tuple[str, str]]:
    if path == "-":
        yield _called(path), sys.stdin.read()
        return
    folder = Path(path)
    files = [folder]
    try:
        if folder.is_dir():
            files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and file.is_file())
        for file in files:
            yield str(file), file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = (error.strerror or "").lower() if isinstance(error, OSError) else "it is not UTF-8"
        raise CommandError(f"cannot read {path}: {cause}; name a file, a folder, or - for standard input") from error


def _documents(where: str, text: str) -> Iterator[Any]:
    from ipamd.ctl.yamls import YamlError, load_all

    try:
        loaded = [json.loads(text)]  # before YAML: it may have tabs, which YAML may not
    except (ValueError, RecursionError):
        try:
            loaded = list(load_all(text))
        except YamlError as error:
            raise CommandError(f"cannot read {where}: {error}; correct the file") from error
    for document in loaded:
        yield from _expanded(document, {})


def _expanded(document: Any, inherited: dict[str, Any]) -> Iterator[Any]:
    """A document, or the resources in it if it is an array or a list."""
    if isinstance(document, list):
        for each in document:
            yield from _expanded(each, inherited)
    elif isinstance(document, dict) and str(document.get("kind", "")).endswith("List"):
        kind = document["kind"].removesuffix("List")
        inherited = {"kind": kind, "apiVersion": document.get("apiVersion")} if kind else {}
        for each in document.get("items") or ():
            yield from _expanded(each, inherited)
    else:
        yield {**inherited, **document} if isinstance(document, dict) else document


def _manifest(where: str, document: Any, kinds: Sequence[Kind]) -> Manifest:
    if not isinstance(document, dict):
        raise CommandError(f"cannot read {where}: {shown(document)} is no resource; write its apiVersion, kind, ...")
    called = document.get("kind")
    known = {name: kind for kind in kinds for name in (kind.name, *kind.also)}
    if not isinstance(called, str) or called not in known:
        near = suggest(str(called or ""), known)
        missing = "a resource has no kind" if called is None else f"there is no kind {shown(called)}"
        raise CommandError(
            f"cannot read {where}: {missing}{near}; the kinds are {', '.join(kind.name for kind in kinds)}"
        )
    version = document.get("apiVersion")
    if version not in VERSIONS:
        told = "has no apiVersion" if version is None else f"has the apiVersion {shown(version)}"
        raise CommandError(f"cannot read {where}: an {called} {told}; write {API}")
    return Manifest(known[called], document, where)


def shown(value: Any) -> str:
    """A value as it may stand in a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
