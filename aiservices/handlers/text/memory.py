"""What a text model takes of its device, estimated from its files alone: no torch, no weights read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiservices.errors import ServiceError
from aiservices.estimates import MemoryNeed
from aiservices.handlers.text.options import GenerationOptions

PROMPT_TOKENS = 1024
"""Tokens of text that an ordinary prompt has at most: 8000 characters take some 2000, a listing's 300."""
_GIB = 2**30
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "auto": 2}
_STATES = 8
"""Vectors as wide as the model, or its inner layer, that a step holds at once for each token that it reads."""
_CUDA_GIB = 0.7
"""What a process takes of a GPU before anything is loaded: context, libraries, work space."""


def estimate_memory(
    model_dir: Path, device: str, options: GenerationOptions, rows: int, picture_tokens: int = 0
) -> MemoryNeed:
    """Estimate it.

    Args:
        model_dir: the checkpoint.
        device: where it will be.
        options: of the service.
        rows: answers at once.
        picture_tokens: most that the pictures of one prompt take.

    Raises:
        ServiceError: the folder holds no ``config.json``.
    """
    config = _read(model_dir / "config.json")
    text = config.get("text_config", config)
    on_gpu = not device.startswith("cpu")
    width = 4 if options.dtype == "auto" and not on_gpu else _BYTES[options.dtype]
    tokens = rows * (PROMPT_TOKENS + picture_tokens + options.max_new_tokens)
    activations = _activations(text, options.prefill_chunk_tokens + picture_tokens, rows, width)
    return MemoryNeed(
        weights_gib=_weights(model_dir, config, width) / _GIB,
        cache_gib=tokens * _token_bytes(text, width) / _GIB,
        activations_gib=activations / _GIB + (_CUDA_GIB if on_gpu else 0),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ServiceError("the model cannot be measured: the folder has no config.json") from error
    return config


def _weights(model_dir: Path, config: Mapping[str, Any], width: int) -> float:
    """Bytes of the files, in the type that they are loaded in."""
    stored = sum(file.stat().st_size for file in model_dir.glob("*.safetensors"))
    text = config.get("text_config", config)
    if "quantization_config" in config:
        return stored * width  # a byte each
    name = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    return stored * width / _BYTES.get(str(name), 2)


def _token_bytes(text: Mapping[str, Any], width: int) -> int:
    """Keys and values of one token."""
    heads = text["num_attention_heads"]
    head_dim = text.get("head_dim") or text["hidden_size"] // heads
    return int(2 * text["num_hidden_layers"] * text.get("num_key_value_heads", heads) * head_dim * width)


def _activations(text: Mapping[str, Any], tokens: int, rows: int, width: int) -> float:
    states = tokens * _STATES * (text["hidden_size"] + text["intermediate_size"]) * width / 2
    logits = 3 * rows * text["vocab_size"] * 4
    return float(states + logits)
