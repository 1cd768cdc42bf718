"""OCI images made by hand, as archives for ``ctr images import``: one layer, one manifest, no registry."""

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
    layer = file.with_suffix(".layer")
    with tarfile.open(layer, "w") as tar:
        for path in sorted(root.iterdir()):
            tar.add(path, path.name)
    with layer.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    whole = _described(digest, layer.stat().st_size, "layer.v1.tar")
    settings = json.dumps({
        "architecture": ARCHITECTURE, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [whole["digest"]]},
    }).encode()  # fmt: skip
    described = _described(hashlib.sha256(settings).hexdigest(), len(settings), "config.v1+json")
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": _kind("manifest.v1+json"), "config": described, "layers": [whole]}
    )
    entry = _described(hashlib.sha256(manifest.encode()).hexdigest(), len(manifest), "manifest.v1+json")
    entry["annotations"] = {"io.containerd.image.name": name}
    with tarfile.open(file, "w") as out:
        _add(out, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(out, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        _add(out, _blob(described), settings)
        _add(out, _blob(entry), manifest.encode())
        out.add(layer, _blob(whole))
    layer.unlink()


def _kind(name: str) -> str:
    return f"application/vnd.oci.image.{name}"


def _described(digest: str, size: int, kind: str) -> dict[str, Any]:
    return {"mediaType": _kind(kind), "digest": f"sha256:{digest}", "size": size}


def _blob(described: dict[str, Any]) -> str:
    return "blobs/" + described["digest"].replace(":", "/")


def _add(out: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    out.addfile(info, io.BytesIO(data))
