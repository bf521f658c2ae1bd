"""Checkpoints with less than 16 bits a weight: eight are made into what they stand for, others are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[mistral]'")
pytest.importorskip("llguidance", reason="needs llguidance: pip install 'aiservices[mistral]'")

from aiservices.errors import ServiceError
from aiservices.handlers.mistral import GenerateDescription
from tests.handlers.text.checkpoints.shapes import rewrite_weights, write
from tests.handlers.text.checkpoints.test_checkpoints import answer, ask, load

MINISTRAL = "mistralai/Ministral-3-3B-Instruct-2512"


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Ministral as it is released."""
    return write(MINISTRAL, tmp_path_factory.mktemp("ministral"))


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to, dirs_exist_ok=True))


def listing(folder: Path) -> Any:
    """Load a checkpoint and ask it for one listing."""
    handler = load(folder, sees=False)
    try:
        return answer(handler, ask(handler))
    finally:
        handler.unload()


def widen(stored: dict[str, Any]) -> dict[str, Any]:
    """Multiply weights and scales by hand."""
    return {
        name: weight.float() * stored[f"{name}_scale_inv"].float() if f"{name}_scale_inv" in stored else weight
        for name, weight in stored.items()
        if not name.endswith(("_scale_inv", "activation_scale"))
    }


def test_eight_bits_answer_what_they_stand_for(eight: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    assert "float8_e4m3fn" in {str(weight.dtype)[6:] for weight in load_file(eight / "model.safetensors").values()}
    wide = copy(eight, tmp_path)
    rewrite_weights(wide, widen)
    config = json.loads((wide / "config.json").read_text())
    del config["quantization_config"]
    (wide / "config.json").write_text(json.dumps(config))
    assert listing(eight) == listing(wide)


def test_scales_count(eight: Path, tmp_path: Path) -> None:
    def halve(stored: dict[str, Any]) -> dict[str, Any]:
        return {name: weight / 2 if name.endswith("_scale_inv") else weight for name, weight in stored.items()}

    halved = copy(eight, tmp_path)
    rewrite_weights(halved, halve)
    assert listing(halved) != listing(eight)


def test_weights_may_bear_the_names_of_the_models_parts(eight: Path, tmp_path: Path) -> None:
    def rename(stored: dict[str, Any]) -> dict[str, Any]:
        old = {"language_model.model.": "model.language_model."}
        old |= {f"{part}.": f"model.{part}." for part in ("vision_tower", "multi_modal_projector")}
        renamed = {}
        for name, weight in stored.items():
            prefix = next((prefix for prefix in old if name.startswith(prefix)), "")
            renamed[old.get(prefix, "") + name.removeprefix(prefix)] = weight
        return renamed

    renamed = copy(eight, tmp_path)
    rewrite_weights(renamed, rename)
    assert listing(renamed) == listing(eight)


def test_nothing_of_the_files_of_another_format_is_read(eight: Path, tmp_path: Path) -> None:
    both = copy(eight, tmp_path)
    (both / "consolidated.safetensors").write_bytes(b"the same weights, by other names")
    assert listing(both) == listing(eight)


def test_scales_are_of_the_whole_of_rows_or_of_blocks() -> None:
    import torch

    from aiservices.handlers.text.own.dequantised import dequantise

    weight = torch.ones(5, 6).to(torch.float8_e4m3fn)
    assert dequantise(weight, torch.tensor(0.5)).eq(0.5).all()
    rows = dequantise(weight, torch.arange(5.0)[:, None])
    assert rows.tolist() == [[float(row)] * 6 for row in range(5)]
    blocks = dequantise(weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (3, 4))
    assert blocks.tolist() == [[1.0] * 4 + [2.0] * 2] * 3 + [[3.0] * 4 + [4.0] * 2] * 2


def test_a_scale_that_is_missing_is_named(eight: Path, tmp_path: Path) -> None:
    gone: list[str] = []

    def drop(stored: dict[str, Any]) -> dict[str, Any]:
        gone.append(next(name for name in sorted(stored) if name.endswith("_scale_inv")))
        return {name: weight for name, weight in stored.items() if name not in gone}

    lacking = copy(eight, tmp_path)
    rewrite_weights(lacking, drop)
    with pytest.raises(ServiceError, match=rf"lacks {gone[0]}"):
        GenerateDescription().load(lacking, "cpu", {})


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "compressed-tensors", "mxfp4"])
def test_other_ways_of_quantising_are_refused_in_one_line(method: str, tmp_path: Path) -> None:
    write("mistralai/Mistral-7B-Instruct-v0.3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128, "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    handler = GenerateDescription()
    with pytest.raises(ServiceError, match=rf"quantised by {method}, .* 16-bit weights, or options\.engine = \"vllm\""):
        handler.load(tmp_path, "cpu", {})
    handler.unload()
