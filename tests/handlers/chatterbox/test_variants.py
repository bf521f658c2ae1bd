"""Which checkpoint a folder holds, and what the library has to be told of it; needs nothing installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiservices.errors import ServiceError
from aiservices.handlers.chatterbox.library import add_backbones
from aiservices.handlers.chatterbox.variants import find_variant


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the folders of Turbo and Nano have in common."""
    for name in ("ve.safetensors", "s3gen_meanflow.safetensors", "tokenizer_config.json"):
        (tmp_path / name).touch()
    return tmp_path


def test_nano_is_told_by_its_file(folder: Path) -> None:
    (folder / "t3_nano_v1.safetensors").touch()
    assert find_variant(folder, "auto").name == "nano"


def test_of_several_variants_the_first_is_taken_unless_one_is_named(folder: Path) -> None:
    for name in ("t3_nano_v1.safetensors", "t3_turbo_v1.safetensors"):
        (folder / name).touch()
    assert [find_variant(folder, wanted).name for wanted in ("auto", "turbo", "nano")] == ["turbo", "turbo", "nano"]


def test_what_a_named_variant_lacks_is_told(folder: Path) -> None:
    with pytest.raises(ServiceError, match=r"checkpoint \(nano\): it lacks t3_nano_v1\.safetensors$"):
        find_variant(folder, "nano")


def test_the_library_is_given_the_sizes_of_nano_and_keeps_its_own() -> None:
    configs: dict[str, Any] = {"GPT2_medium": {"n_embd": 1024, "hidden_size": 1024, "n_layer": 24, "n_head": 16}}
    configs["GPT2_medium"]["n_positions"] = 8196
    add_backbones(configs)
    sizes = {"n_embd": 768, "hidden_size": 768, "n_layer": 12, "n_head": 12, "n_positions": 8196}
    assert configs["GPT2_small"] == sizes
    assert configs["GPT2_medium"]["n_embd"] == 1024
    own = configs["GPT2_small"] = {"n_layer": 13}
    add_backbones(configs)
    assert configs["GPT2_small"] is own
