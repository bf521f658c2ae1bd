"""Models whose layers the engine cannot work with."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
from aiservices.errors import ServiceError
from tests.handlers.text.own.loading import load_engine
from tests.handlers.tiny_models import write_mistral


def test_a_sliding_window_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"sliding window.*v0\.3"):
        load_engine(write_mistral(tmp_path, sliding_window=64))
