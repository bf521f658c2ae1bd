"""Load tiny Mistrals into the engine."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from aiservices.handlers.text.checkpoint import read_checkpoint
from aiservices.handlers.text.engine import generate
from aiservices.handlers.text.generation import GenerationRequest
from aiservices.handlers.text.options import GenerationOptions

MISTRAL = {"mistral": "AutoModelForCausalLM"}


def load_engine(folder: Path, **options: Any) -> Any:
    """Load a folder on the CPU, in float32: only there is rounding too small to change a token."""
    options = {"dtype": "float32", **options}
    from aiservices.handlers.text.own import loading

    return loading.load_engine(read_checkpoint(folder, MISTRAL), "cpu", GenerationOptions(**options), None)


def same_model(engine: Any, chunk_tokens: int = 1024, stop_ids: Collection[int] | None = None, **settings: Any) -> Any:
    """Make a fresh engine over the weights of another one; ``settings`` are further arguments of its class."""
    from aiservices.handlers.text.own.engine import OwnEngine

    backbone = copy.copy(engine._backbone)  # so that a test may replace its methods
    return OwnEngine(backbone, engine._tokenizer, stop_ids or engine._stop_ids, chunk_tokens, **settings)


def tokens_alone(engine: Any, requests: Sequence[GenerationRequest]) -> list[tuple[int, ...]]:
    """What each request becomes by itself."""
    return [generate(engine, [request])[0].token_ids for request in requests]
