"""The services of ``examples/services.toml``, as a process started in the project's folder has them."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from aiservices.config import load_config
from aiservices.settings import Config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(ROOT)  # a model's folder is relative to it
    monkeypatch.syspath_prepend(ROOT / "examples")
    read = load_config(Path("examples/services.toml"), {}, "examples")
    return attrs.evolve(read, server=attrs.evolve(read.server, grace_s=0.0))
