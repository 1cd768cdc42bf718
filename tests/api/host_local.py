"""The real ``host-local`` plugin, the reference that ours is compared with: a process for each call."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.api.plugin_call import ENVIRONMENT

_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))


class HostLocal:
    """The plugin with its state in a directory of the test's."""

    def __init__(self, directory: Path) -> None:
        found = next((each / "host-local" for each in _DIRECTORIES if (each / "host-local").exists()), None)
        if found is None:
            pytest.fail("cannot compare with host-local; install containernetworking-plugins (tests/system.sh)")
        self._program, self._directory = found, directory

    def call(self, config: Mapping[str, object], environment: Mapping[str, str]) -> bytes | None:
        """What the plugin printed; None if it failed."""
        ipam = config["ipam"]
        assert isinstance(ipam, dict)
        body = {**config, "ipam": {**ipam, "dataDir": str(self._directory)}}
        done = subprocess.run(
            [self._program],
            env={**ENVIRONMENT, **environment},
            input=json.dumps(body).encode(),
            capture_output=True,
            check=False,
            timeout=30,
        )
        return done.stdout if done.returncode == 0 else None
