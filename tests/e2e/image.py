"""OCI images made by hand, as archives for ``ctr images import``: one layer, one manifest, no registry."""

import gzip
import hashlib
import io
import json
import platform
import shutil
import tarfile
from pathlib import Path
from typing import Any

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def busybox(folder: Path) -> Path:
    """A root file system of the static busybox alone."""
    program = shutil.which("busybox")
    assert program is not None
    root = folder / "busybox"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy2(program, root / "bin" / "busybox")
    for name in ("sh", "sleep", "ping", "true"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    return root


def archive(root: Path, name: str, file: Path, config: dict[str, Any]) -> None:
    """Write the image ``name`` of a root file system; ``config`` as in the image specification (Entrypoint, Env, Cmd)."""
    layer = _layer(root)
    packed = gzip.compress(layer, 1)
    blobs: dict[str, bytes] = {}
    settings = _blob(blobs, json.dumps({
        "architecture": ARCHITECTURE, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }).encode(), "application/vnd.oci.image.config.v1+json")  # fmt: skip
    content = _blob(blobs, packed, "application/vnd.oci.image.layer.v1.tar+gzip")
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": settings, "layers": [content]}
    entry = _blob(blobs, json.dumps(manifest).encode(), kind)
    entry["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    with tarfile.open(file, "w") as out:
        _add(out, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(out, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        for digest, data in blobs.items():
            _add(out, f"blobs/sha256/{digest}", data)


def _layer(root: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path in sorted(root.iterdir()):
            tar.add(path, path.name)
    return out.getvalue()


def _blob(blobs: dict[str, bytes], data: bytes, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    blobs[digest] = data
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def _add(out: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    out.addfile(info, io.BytesIO(data))
