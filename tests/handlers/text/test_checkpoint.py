"""Checkpoints that cannot be served are refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
from aiservices.errors import ServiceError
from aiservices.handlers.text.checkpoint import read_checkpoint
from tests.handlers.text.own.loading import load_engine
from tests.handlers.tiny_models import write_mistral

MISTRAL = {"mistral": "AutoModelForCausalLM"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mistral(tmp_path_factory.mktemp("mistral"))


def test_a_checkpoint_that_lacks_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ServiceError, match=r"lacks 1 weights.*up_proj"):
        load_engine(broken)


def test_other_models_and_empty_folders_are_refused_without_a_path(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"takes llama models, the folder holds a mistral one"):
        read_checkpoint(folder, {"llama": "AutoModelForCausalLM"})
    with pytest.raises(ServiceError, match="cannot be loaded") as refusal:
        read_checkpoint(tmp_path, MISTRAL)
    assert str(tmp_path) not in str(refusal.value)
    with pytest.raises(ServiceError, match="needs a model"):
        read_checkpoint(None, MISTRAL)


def test_a_checkpoint_without_a_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    bare = shutil.copytree(folder, tmp_path / "bare")
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ServiceError, match="no chat template"):
        read_checkpoint(bare, MISTRAL)
