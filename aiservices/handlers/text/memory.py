"""What a text model takes of its device, estimated from its ``config.json`` alone: no torch, no weights read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiservices.errors import ServiceError
from aiservices.estimates import MemoryNeed
from aiservices.handlers.text.options import GenerationOptions

PROMPT_TOKENS = 1024
"""Tokens of text in a prompt of ordinary length; a listing's has some 300, the longest that is accepted some 3000."""
_GIB = 2**30
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_STATES = 4
"""Vectors as wide as the model, and as its inner layer, that a step holds at once for each token that it reads."""
_LOGITS = 3
"""Copies of the scores of all tokens, in float32, while a row's next token is chosen."""
_WORK_BYTES = 0.5 * _GIB
"""What the libraries of a GPU take as work space, and what torch's allocator holds in reserve."""
_GATED_TOWERS = frozenset({"qwen2_5_vl", "mistral3"})
"""Models whose vision tower has three linear layers in each inner part; the others' have two."""


def estimate_memory(
    config: Mapping[str, Any], device: str, options: GenerationOptions, rows: int, picture_tokens: int = 0
) -> MemoryNeed:
    """Estimate what the package's engine takes at most, with prompts of ordinary length.

    Weights of eight bits count as what they become.

    Args:
        config: the checkpoint's ``config.json``.
        device: where it will be.
        options: of the service.
        rows: answers at once.
        picture_tokens: most that the pictures of one prompt take; 0 where there are none, and no vision tower is kept.

    Raises:
        ServiceError: the config is of no model of this kind.
    """
    on_gpu = not device.startswith("cpu")
    width = _BYTES.get(options.dtype) or (2 if on_gpu else 4)
    slots = 1 << (rows - 1).bit_length()  # as many as the cache makes
    tokens = slots * (PROMPT_TOKENS + picture_tokens + options.max_new_tokens)
    tokens = min(tokens, options.cache_tokens or tokens)
    try:
        text = config.get("text_config", config)
        weights = _decoder(text, bool(config.get("tie_word_embeddings", False)))
        activations = max(options.prefill_chunk_tokens, picture_tokens) * _STATES * _widths(text) * width
        activations += _LOGITS * rows * text["vocab_size"] * 4
        if picture_tokens:
            vision = config["vision_config"]
            weights += _tower(config["model_type"], vision, text["hidden_size"])
            patches = picture_tokens * vision.get("spatial_merge_size", 2) ** 2
            activations = max(activations, patches * (2 * _STATES * _widths(vision) * width + 4 * _pixels(vision)))
        cache = tokens * _token_states(text) * width
    except (KeyError, TypeError) as error:
        raise ServiceError(f"the model cannot be measured: its config.json says no {error}") from error
    return MemoryNeed(
        weights_gib=weights * width / _GIB,
        cache_gib=cache / _GIB,
        activations_gib=(activations + (_WORK_BYTES if on_gpu else 0)) / _GIB,
    )


def read_config(model_dir: Path) -> Mapping[str, Any]:
    """Read a folder's ``config.json``.

    Raises:
        ServiceError: there is none, or it is none.
    """
    try:
        config: Mapping[str, Any] = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ServiceError("the model cannot be measured: the folder has no config.json") from error
    return config


def _decoder(text: Mapping[str, Any], tied: bool) -> int:
    """Parameters of embeddings, layers and head; norms and biases, less than a thousandth, are left out."""
    hidden, heads, keys = text["hidden_size"], text["num_attention_heads"], _key_heads(text)
    attention = 2 * hidden * _head_dim(text) * (heads + keys)
    layer = attention + 3 * hidden * text["intermediate_size"]
    embeddings = (1 if tied else 2) * text["vocab_size"] * hidden
    return int(text["num_hidden_layers"] * layer + embeddings)


def _tower(model_type: str, vision: Mapping[str, Any], text_hidden: int) -> int:
    """Parameters of a vision tower with what joins it to the decoder."""
    layers = vision.get("depth") or vision["num_hidden_layers"]
    hidden, inner = _hidden_and_inner(vision)
    linear = 3 if model_type in _GATED_TOWERS else 2
    joined = hidden * vision.get("spatial_merge_size", 2) ** 2
    mergers = 1 + len(vision.get("deepstack_visual_indexes", ()))
    embeddings = hidden * (_pixels(vision) + vision.get("num_position_embeddings", 0))
    return int(
        layers * (4 * hidden**2 + linear * hidden * inner) + mergers * (joined**2 + joined * text_hidden) + embeddings
    )


def _hidden_and_inner(vision: Mapping[str, Any]) -> tuple[int, int]:
    if "embed_dim" in vision:  # Qwen2-VL, where hidden_size is the decoder's
        return vision["embed_dim"], int(vision["embed_dim"] * vision.get("mlp_ratio", 4))
    return vision["hidden_size"], vision["intermediate_size"]


def _widths(part: Mapping[str, Any]) -> int:
    hidden, inner = _hidden_and_inner(part)
    return hidden + inner


def _pixels(vision: Mapping[str, Any]) -> int:
    """Numbers that describe a patch."""
    return int(3 * vision.get("temporal_patch_size", 1) * vision["patch_size"] ** 2)


def _token_states(text: Mapping[str, Any]) -> int:
    """Numbers that the keys and values of one token are."""
    return int(2 * text["num_hidden_layers"] * _key_heads(text) * _head_dim(text))


def _head_dim(text: Mapping[str, Any]) -> int:
    return int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])


def _key_heads(text: Mapping[str, Any]) -> int:
    return int(text.get("num_key_value_heads") or text["num_attention_heads"])
