"""Alert rules: what they name exists, and they fire when they should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_metrics import SERIES

FOLDER = Path(__file__).parent.parent / "deploy" / "monitoring"


def test_each_series_that_a_rule_names_exists() -> None:
    named = set(re.findall(r"aiservices_\w+", (FOLDER / "alerts.yml").read_text(encoding="utf-8")))
    known = {name for name, _, _ in SERIES} | {f"{name}_bucket" for name, kind, _ in SERIES if kind == "histogram"}
    assert named
    assert named <= known


def test_the_rules_fire_as_their_own_test_says() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, which comes with Prometheus")
    command = [promtool, "test", "rules", "alerts_test.yml"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
