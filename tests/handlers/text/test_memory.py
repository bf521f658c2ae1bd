"""What a model takes of its device, by its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aiservices.errors import ServiceError
from aiservices.handlers.mistral import GenerateDescription
from aiservices.handlers.qwen import DescribeImage
from aiservices.handlers.text.known_models import KNOWN_MODELS, known_model
from aiservices.handlers.text.memory import estimate_memory, read_config
from aiservices.handlers.text.options import GenerationOptions
from tests.handlers.text.checkpoints.shapes import MINISTRAL_3B_CONFIG, MISTRAL_CONFIG, QWEN25_CONFIG, SHAPES

GIB = 2**30


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.repository)
def test_weights_are_counted_as_the_real_classes_count_them(shape: Any) -> None:
    """``parameters`` is what transformers counts; see test_checkpoints."""
    need = estimate_memory(shape.config, "cuda", GenerationOptions(), 8, 1280 if shape.sees else 0)
    billions = need.weights_gib * GIB / 2 / 1e9
    tower = 0.0 if shape.sees or "vision_config" not in shape.config else 0.42  # not kept where nobody sees
    assert billions == pytest.approx(shape.parameters - tower, rel=0.005)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.repository)
def test_a_model_is_known_by_its_name_before_it_is_here(shape: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shape.config))
    handler: Any = DescribeImage() if shape.sees else GenerateDescription()
    by_name = handler.estimate_memory(None, f"hf://{shape.repository}@main", "cuda", {}, 8)
    assert by_name == handler.estimate_memory(tmp_path, "a folder", "cuda", {}, 8)


def test_other_models_are_unknown_until_they_are_here() -> None:
    assert GenerateDescription().estimate_memory(None, "s3://bucket/model/", "cuda", {}, 8) is None
    assert known_model("hf://mistralai/Ministral-3-8B-Instruct-2512-BF16") is not None
    assert all(name == name.lower() for name in KNOWN_MODELS)


def test_rows_take_their_keys_and_values() -> None:
    need = estimate_memory(MISTRAL_CONFIG, "cuda", GenerationOptions(), 16)
    # 32 layers of 8 heads of 128, keys and values, two bytes: 128 KiB a token, for 16 rows of 1024 + 512
    assert need.cache_gib == pytest.approx(16 * 1536 * 128 / 2**20)
    assert estimate_memory(MISTRAL_CONFIG, "cuda", GenerationOptions(), 9).cache_gib == need.cache_gib
    bounded = estimate_memory(MISTRAL_CONFIG, "cuda", GenerationOptions(cache_tokens=8192), 16)
    assert bounded.cache_gib == pytest.approx(8192 * 128 / 2**20)
    assert 0.5 < need.activations_gib < 1
    assert need.total_gib == need.weights_gib + need.cache_gib + need.activations_gib


def test_pictures_and_a_wider_type_take_more() -> None:
    plain = estimate_memory(QWEN25_CONFIG, "cuda", GenerationOptions(), 8)
    with_pictures = estimate_memory(QWEN25_CONFIG, "cuda", GenerationOptions(), 8, picture_tokens=1280)
    assert with_pictures.cache_gib == pytest.approx(plain.cache_gib * (1536 + 1280) / 1536)
    assert with_pictures.activations_gib > plain.activations_gib
    wide = estimate_memory(QWEN25_CONFIG, "cpu", GenerationOptions(), 8)
    assert wide.weights_gib == pytest.approx(2 * plain.weights_gib)
    narrow = estimate_memory(QWEN25_CONFIG, "cpu", GenerationOptions(dtype="bfloat16"), 8)
    assert narrow.weights_gib == plain.weights_gib


def test_a_folder_without_a_config_or_with_another_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"no config\.json"):
        read_config(tmp_path)
    with pytest.raises(ServiceError, match=r"config\.json says no 'hidden_size'"):
        estimate_memory({"vocab_size": 5}, "cuda", GenerationOptions(), 1)
    lacking = {**MINISTRAL_3B_CONFIG, "vision_config": {"depth": 2}}
    with pytest.raises(ServiceError, match=r"says no 'hidden_size'"):
        estimate_memory(lacking, "cuda", GenerationOptions(), 1, picture_tokens=64)
