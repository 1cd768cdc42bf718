"""Writes the dashboard into the chart: ``python -m tests.helm.dashboard``."""

from tests.helm.dashboard.build import FILE, text

FILE.write_text(text())
