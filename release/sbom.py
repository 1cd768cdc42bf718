"""The bill of materials of a wheel, in CycloneDX: what runs when it is installed, what its plugin was compiled with.

The versions are those of the environment that makes the release, in which its tests are run; the wheel itself names
lower bounds.
"""

import hashlib
import uuid
import zipfile
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from email import message_from_bytes, message_from_string
from email.message import Message
from importlib import metadata
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BUILT_WITH = ("hatchling", "ziglang")


def of_wheel(wheel: Path, epoch: int) -> str:
    """The bill of a wheel as JSON, dated with Unix time ``epoch``: the same text for the same wheel and environment."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = [each for each in files.namelist() if each.endswith(".dist-info/METADATA")]
        own = message_from_bytes(files.read(name))
        plugins = {each: files.read(each) for each in sorted(files.namelist()) if "/cni/bin/" in each}
    root = _component(own, ComponentType.APPLICATION, wheel.read_bytes())
    bom = Bom(
        metadata=BomMetaData(
            component=root,
            timestamp=datetime.fromtimestamp(epoch, UTC),
            tools=ToolRepository(
                components=[Component(name=each, version=metadata.version(each)) for each in BUILT_WITH]
            ),
            properties=[Property(name="ipamd:python", value=default_environment()["python_version"])],
        )
    )
    known: dict[str, Component] = {}
    needed = [_add(bom, name, known) for name in _requirements(own, ())]
    bom.register_dependency(root, [*needed, *_plugins(bom, plugins)])
    # Random by default: what it is a name of is the wheel.
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(wheel.read_bytes()).hexdigest())
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _add(bom: Bom, requirement: Requirement, known: dict[str, Component]) -> Component:
    """Add what is installed for a requirement, with all that it needs itself."""
    name = canonicalize_name(requirement.name)
    key = f"{name}{sorted(requirement.extras)}"
    if key not in known:
        found = message_from_string(metadata.distribution(name).read_text("METADATA") or "")
        known[key] = known.get(name) or _component(found, ComponentType.LIBRARY)
        known[name] = known[key]
        bom.components.add(known[key])
        needs = _requirements(found, requirement.extras)
        bom.register_dependency(known[key], [_add(bom, each, known) for each in needs])
    return known[key]


def _requirements(found: Message, extras: Collection[str]) -> list[Requirement]:
    """What a distribution needs here, with these of its extras."""
    listed = [Requirement(each) for each in found.get_all("Requires-Dist") or ()]
    chosen = extras or ("",)
    return [
        each
        for each in listed
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in chosen)
    ]


def _component(found: Message, kind: ComponentType, content: bytes | None = None) -> Component:
    name, version = str(found["Name"]), str(found["Version"])
    expression = found["License-Expression"] or found["License"]
    purl = PackageURL("pypi", name=canonicalize_name(name), version=version)
    return Component(
        name=name,
        version=version,
        type=kind,
        bom_ref=str(purl),
        purl=purl,
        description=found["Summary"],
        licenses=[LicenseFactory().make_from_string(expression.splitlines()[0])] if expression else (),
        hashes=[_sha256(content)] if content is not None else (),
    )


def _plugins(bom: Bom, files: Mapping[str, bytes]) -> list[Component]:
    """Add the compiled plugins, by path in the wheel, and the C library that is part of each."""
    musl = Component(
        name="musl",
        bom_ref="musl",
        description="C library, linked statically",
        licenses=[DisjunctiveLicense(id="MIT")],
        properties=[Property(name="ipamd:carried-by", value=f"ziglang {metadata.version('ziglang')}")],
    )
    bom.components.add(musl)
    made = []
    for path, content in files.items():
        plugin = Component(name=path, bom_ref=path, type=ComponentType.FILE, hashes=[_sha256(content)])
        bom.components.add(plugin)
        bom.register_dependency(plugin, [musl])
        made.append(plugin)
    return made


def _sha256(content: bytes) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(content).hexdigest())
