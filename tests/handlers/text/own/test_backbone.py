"""Models whose layers the engine cannot work with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
from aiservices.errors import ServiceError
from aiservices.handlers.text.checkpoint import Checkpoint, load_checkpoint
from aiservices.handlers.text.generation import GenerationOptions
from tests.handlers.tiny_models import write_mistral

MISTRAL = {"mistral": "AutoModelForCausalLM"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mistral(tmp_path_factory.mktemp("mistral"))


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint(folder, "cpu", GenerationOptions(), MISTRAL)


def make_engine(checkpoint: Checkpoint, chunk_tokens: int = 1024) -> Any:
    from aiservices.handlers.text.own.backbone import Backbone
    from aiservices.handlers.text.own.engine import GenerationEngine

    backbone = Backbone(checkpoint.model, "cpu")
    return GenerationEngine(backbone, checkpoint.chat.backend, checkpoint.stop_ids, chunk_tokens)


def test_a_sliding_window_is_refused_with_the_way_out(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_mistral(tmp_path, sliding_window=64), "cpu", GenerationOptions(), MISTRAL)
    with pytest.raises(ServiceError, match=r"sliding window.*v0\.3"):
        make_engine(checkpoint)
