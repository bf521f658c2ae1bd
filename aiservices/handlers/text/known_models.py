"""What the ``config.json`` of the models that are offered says of their size, for as long as they are not here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_QWEN3_TEXT = {"head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151936}
_QWEN3_VISION = {
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 2304,
}
_QWEN3_SMALL_VISION = {
    **_QWEN3_VISION,
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
_MINISTRAL_TEXT = {"head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 131072}

KNOWN_MODELS: Mapping[str, Mapping[str, Any]] = {
    "qwen/qwen2.5-vl-7b-instruct": {
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    },
    "qwen/qwen3-vl-8b-instruct": {
        "model_type": "qwen3_vl",
        "text_config": {
            **_QWEN3_TEXT,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
        },
        "vision_config": {
            **_QWEN3_VISION,
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    },
    "qwen/qwen3-vl-4b-instruct": {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "text_config": {
            **_QWEN3_TEXT,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
        },
        "vision_config": _QWEN3_SMALL_VISION,
    },
    "qwen/qwen3-vl-2b-instruct": {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "text_config": {
            **_QWEN3_TEXT,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
        },
        "vision_config": _QWEN3_SMALL_VISION,
    },
    "mistralai/mistral-7b-instruct-v0.3": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32768,
    },
    "mistralai/ministral-3-8b-instruct-2512": {
        "model_type": "mistral3",
        "text_config": {
            **_MINISTRAL_TEXT,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 34,
        },
    },
    "mistralai/ministral-3-3b-instruct-2512": {
        "model_type": "mistral3",
        "tie_word_embeddings": True,
        "text_config": {
            **_MINISTRAL_TEXT,
            "hidden_size": 3072,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
        },
    },
}
"""By repository in small letters; the sizes only. Source: the repositories."""


def known_model(uri: str) -> Mapping[str, Any] | None:
    """Return what is known of a model by its ``hf://`` URI; the 16-bit copy of a repository is as large."""
    repository = uri.removeprefix("hf://").partition("?")[0].partition("@")[0].lower()
    return KNOWN_MODELS.get(repository.removesuffix("-bf16"))
