"""Every checkpoint that ``services.toml`` names, by its files: load, prompt, one answer."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
pytest.importorskip("llguidance", reason="needs llguidance: pip install 'aiservices[mistral]'")

from aiservices.errors import ServiceError
from aiservices.handlers.mistral import GenerateDescription, GenerateDescriptionInput
from aiservices.handlers.qwen import DescribeImage, DescribeImageInput
from aiservices.handlers.text.chat import OWN_SYSTEM_PROMPT
from aiservices.handlers.text.generation import Sampling
from aiservices.handlers.torch_runtime import prepare_torch
from tests.handlers.test_qwen import picture
from tests.handlers.text.checkpoints.shapes import SHAPES, Shape, write
from tests.handlers.text_fakes import FakeContext, step_to_end, tasks_for

QWEN = {shape.repository: shape for shape in SHAPES if shape.sees}
MISTRAL = {shape.repository: shape for shape in SHAPES if not shape.sees}
PADDED = {"max_new_tokens": 220}


def load(shape: Shape, folder: Path, **options: Any) -> Any:
    """Load a shape; nobody may complain meanwhile."""
    handler: Any = DescribeImage() if shape.sees else GenerateDescription()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handler.load(write(shape, folder), "cpu", {**PADDED, "dtype": "float32", **options})
    return handler


def ask(handler: Any, **fields: Any) -> Any:
    """Make the request of one small question."""
    if isinstance(handler, DescribeImage):
        asked: Any = DescribeImageInput("https://shop.example/mug.png", **fields)
        context = FakeContext(picture=picture(1, (300, 200)))
    else:
        asked = GenerateDescriptionInput("A small striped red mug.", **fields)
        context = FakeContext()
    return asyncio.run(handler.preprocess(asked, context))


def answer(handler: Any, request: Any) -> Any:
    tasks = tasks_for([request])
    handler.admit(tasks)
    (result,) = step_to_end(handler, tasks)
    return handler.postprocess(result)


@pytest.mark.parametrize("repository", [shape.repository for shape in SHAPES])
def test_a_checkpoint_loads_without_a_word_and_answers(
    repository: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    shape = {**QWEN, **MISTRAL}[repository]
    write(shape, tmp_path)
    capfd.readouterr()
    caplog.clear()
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        handler: Any = DescribeImage() if shape.sees else GenerateDescription()
        handler.load(tmp_path, "cpu", {**PADDED, "dtype": "float32"})
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr().err == ""
    output = answer(handler, ask(handler, max_new_tokens=220))
    assert output.description
    handler.unload()


@pytest.mark.parametrize("repository", [shape.repository for shape in SHAPES])
def test_the_released_sizes_are_those_of_the_table(repository: str, tmp_path: Path) -> None:
    prepare_torch()
    import torch
    import transformers

    shape = {**QWEN, **MISTRAL}[repository]
    (tmp_path / "config.json").write_text(json.dumps(shape.config))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        model = getattr(transformers, shape.config["architectures"][0])(config)
    tied = {id(parameter): parameter.numel() for parameter in model.parameters()}
    assert sum(tied.values()) / 1e9 == pytest.approx(shape.parameters, rel=0.02)


def test_qwen3_samples_as_it_asks_for_and_greedily_if_the_caller_says_so(tmp_path: Path) -> None:
    handler = load(QWEN["Qwen/Qwen3-VL-4B-Instruct"], tmp_path)
    assert ask(handler).sampling == Sampling(0.7, 0.8, 20, presence_penalty=1.5)
    assert ask(handler, temperature=0.0).sampling.temperature == 0.0
    assert ask(handler, top_p=0.5, seed=3).sampling == Sampling(0.7, 0.5, 20, presence_penalty=1.5, seed=3)
    handler.unload()


def test_checkpoints_that_ask_for_next_to_no_temperature_are_greedy(tmp_path: Path) -> None:
    qwen = load(QWEN["Qwen/Qwen2.5-VL-7B-Instruct"], tmp_path)
    assert ask(qwen).sampling == Sampling(repetition_penalty=1.05)
    qwen.unload()


def test_mistral_is_greedy_until_the_caller_says_otherwise(tmp_path: Path) -> None:
    mistral = load(MISTRAL["mistralai/Mistral-7B-Instruct-v0.3"], tmp_path)
    assert ask(mistral).sampling == Sampling()
    assert ask(mistral, temperature=0.4).sampling == Sampling(0.4)
    mistral.unload()


def test_eight_bits_answer_what_they_stand_for(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from aiservices.handlers.text.own.dequantised import dequantise

    (tmp_path / "eight").mkdir()
    eight = load(MISTRAL["mistralai/Ministral-3-3B-Instruct-2512"], tmp_path / "eight")
    expected = answer(eight, ask(eight))
    eight.unload()

    wide = Path(shutil.copytree(tmp_path / "eight", tmp_path / "wide"))
    stored = {name: weight for shard in sorted(wide.glob("*.safetensors")) for name, weight in load_file(shard).items()}
    assert any(name.endswith("_scale_inv") for name in stored)
    weights = {
        name: dequantise(weight, stored[f"{name}_scale_inv"], torch.float32)
        if f"{name}_scale_inv" in stored
        else weight
        for name, weight in stored.items()
        if not name.endswith(("_scale_inv", "activation_scale"))
    }
    (wide / "model.safetensors.index.json").unlink()
    save_file(weights, wide / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((wide / "config.json").read_text())
    del config["quantization_config"]
    (wide / "config.json").write_text(json.dumps(config))
    handler = GenerateDescription()
    handler.load(wide, "cpu", {**PADDED, "dtype": "float32"})
    assert answer(handler, ask(handler)) == expected
    handler.unload()


def test_scales_are_of_the_whole_of_rows_or_of_blocks() -> None:
    import torch

    from aiservices.handlers.text.own.dequantised import dequantise

    weight = torch.ones(5, 6).to(torch.float8_e4m3fn)
    assert dequantise(weight, torch.tensor(0.5), torch.bfloat16).eq(0.5).all()
    rows = dequantise(weight, torch.arange(5.0)[:, None], torch.float32)
    assert rows.tolist() == [[float(row)] * 6 for row in range(5)]
    blocks = dequantise(weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.float32, (3, 4))
    assert blocks.tolist() == [[1.0] * 4 + [2.0] * 2] * 3 + [[3.0] * 4 + [4.0] * 2] * 2


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "compressed-tensors", "mxfp4"])
def test_other_ways_of_quantising_are_refused_in_one_line(method: str, tmp_path: Path) -> None:
    write(MISTRAL["mistralai/Mistral-7B-Instruct-v0.3"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128, "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    handler = GenerateDescription()
    with pytest.raises(ServiceError, match=rf"quantised by {method}, .* 16-bit weights, or options\.engine = \"vllm\""):
        handler.load(tmp_path, "cpu", {})
    handler.unload()


def test_a_scale_that_is_missing_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write(MISTRAL["mistralai/Ministral-3-3B-Instruct-2512"], tmp_path)
    scale = "language_model.model.layers.1.mlp.up_proj.weight_scale_inv"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shard = tmp_path / index["weight_map"][scale]
    stored = load_file(shard)
    del stored[scale]
    save_file(stored, shard, metadata={"format": "pt"})
    with pytest.raises(ServiceError, match=rf"lacks {scale}"):
        GenerateDescription().load(tmp_path, "cpu", {})


def test_eight_bits_are_widened_one_weight_at_a_time(tmp_path: Path) -> None:
    """All of them at once beside the model that is being made would be twice its memory."""
    import torch

    from aiservices.handlers.mistral import AUTO_CLASSES
    from aiservices.handlers.text.checkpoint import read_checkpoint
    from aiservices.handlers.text.own.dequantised import source_of_weights

    write(MISTRAL["mistralai/Ministral-3-3B-Instruct-2512"], tmp_path)
    weights = source_of_weights(read_checkpoint(tmp_path, AUTO_CLASSES), torch.bfloat16)["state_dict"]
    assert not any(isinstance(weight, torch.Tensor) for weight in weights.values())
    assert weights["language_model.model.layers.0.mlp.up_proj.weight"][...].dtype == torch.bfloat16


def test_ministral_gets_a_short_system_prompt_without_a_date(tmp_path: Path) -> None:
    handler = load(MISTRAL["mistralai/Ministral-3-3B-Instruct-2512"], tmp_path)
    backend = handler.loaded.checkpoint.chat.backend

    def text(**fields: Any) -> str:
        return str(backend.decode(list(ask(handler, **fields).prompt.token_ids), skip_special_tokens=False))

    assert text().startswith(f"<s>[SYSTEM_PROMPT]{OWN_SYSTEM_PROMPT}[/SYSTEM_PROMPT][INST]")
    assert "current date" not in text()
    assert text(system_prompt="Be brief.").startswith("<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]")
    handler.unload()


def test_short_system_prompts_of_templates_stay(tmp_path: Path) -> None:
    handler = load(QWEN["Qwen/Qwen2.5-VL-7B-Instruct"], tmp_path)
    backend = handler.loaded.checkpoint.chat.backend
    text = backend.decode(list(ask(handler).prompt.token_ids), skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user")
    handler.unload()
