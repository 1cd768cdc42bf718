"""For all tests: Hypothesis draws the same examples in every run of CI, so that a red build is about its change."""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
