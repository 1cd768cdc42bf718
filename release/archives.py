"""Unpacks archives, on every Python 3.11."""

import tarfile
from pathlib import Path


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive of our own; nothing of it lands outside of the folder where Python can see to that.

    Python 3.11.2, Debian 12's, cannot, and knows no such argument of ``extractall``.
    """
    with tarfile.open(archive) as files:
        files.extraction_filter = getattr(tarfile, "data_filter", None)
        files.extractall(folder)  # noqa: S202 - our own
