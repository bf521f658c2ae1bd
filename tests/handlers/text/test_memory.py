"""What a model takes of its device, by its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aiservices.errors import ServiceError
from aiservices.handlers.text.memory import estimate_memory
from aiservices.handlers.text.options import GenerationOptions
from tests.handlers.text.checkpoints.shapes import MINISTRAL_3B_CONFIG, MISTRAL_CONFIG, QWEN25_CONFIG


def write(folder: Path, config: dict[str, Any], file_bytes: int) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(file_bytes)  # a hole: it takes no room
    return folder


def test_mistral_on_a_gpu(tmp_path: Path) -> None:
    need = estimate_memory(write(tmp_path, MISTRAL_CONFIG, 14_496_000_000), "cuda", GenerationOptions(), 16)
    assert need.weights_gib == pytest.approx(13.5, abs=0.1)
    # 32 layers of 8 heads of 128, keys and values, two bytes: 128 KiB a token, for 16 rows of 1536
    assert need.cache_gib == pytest.approx(16 * 1536 * 128 / 2**20)
    assert 0.7 < need.activations_gib < 1.5
    assert need.total_gib == need.weights_gib + need.cache_gib + need.activations_gib


def test_pictures_and_a_wider_type_take_more(tmp_path: Path) -> None:
    folder = write(tmp_path, QWEN25_CONFIG, 16_600_000_000)
    plain = estimate_memory(folder, "cuda", GenerationOptions(), 8)
    seeing = estimate_memory(folder, "cuda", GenerationOptions(), 8, picture_tokens=1280)
    assert seeing.cache_gib == pytest.approx(plain.cache_gib * (1536 + 1280) / 1536)
    assert seeing.activations_gib > plain.activations_gib
    wide = estimate_memory(folder, "cpu", GenerationOptions(), 8)
    assert wide.weights_gib == pytest.approx(2 * plain.weights_gib)


def test_eight_bits_become_sixteen(tmp_path: Path) -> None:
    need = estimate_memory(write(tmp_path, MINISTRAL_3B_CONFIG, 4_000_000_000), "cuda", GenerationOptions(), 1)
    assert need.weights_gib == pytest.approx(8_000_000_000 / 2**30)


def test_a_folder_without_a_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"no config\.json"):
        estimate_memory(tmp_path, "cuda", GenerationOptions(), 1)
