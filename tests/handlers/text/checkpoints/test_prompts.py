"""What the models read: the chat template and the tokenizer of each checkpoint, and nothing that nobody asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")

from aiservices.handlers.mistral import AUTO_CLASSES
from aiservices.handlers.qwen import DescribeImage
from aiservices.handlers.text.checkpoint import Checkpoint, read_checkpoint
from tests.handlers.text.checkpoints.shapes import SHAPES, write

SHAPE = {shape.repository.partition("/")[2]: shape for shape in SHAPES}
ASKED = [{"role": "user", "content": "A mug."}]
IN_PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A mug."}]}]


def read(name: str, folder: Path) -> Checkpoint:
    return read_checkpoint(write(SHAPE[name], folder), {**AUTO_CLASSES, **DescribeImage.auto_classes})


def prompt(checkpoint: Checkpoint, messages: list[dict[str, Any]]) -> str:
    return str(checkpoint.chat.backend.decode(checkpoint.chat.encode(messages), skip_special_tokens=False))


@pytest.mark.parametrize("name", ["Ministral-3-3B-Instruct-2512", "Ministral-3-8B-Instruct-2512"])
def test_ministral_is_given_a_short_system_prompt_without_a_date(name: str, tmp_path: Path) -> None:
    checkpoint = read(name, tmp_path)
    short = "<s>[SYSTEM_PROMPT]You are a helpful assistant.[/SYSTEM_PROMPT][INST]A mug.[/INST]"
    assert prompt(checkpoint, ASKED) == short
    given = prompt(checkpoint, [{"role": "system", "content": "Be brief."}, *ASKED])
    assert given == "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]A mug.[/INST]"


def test_mistral_has_no_system_prompt_and_reads_spaces_as_its_template_has_them(tmp_path: Path) -> None:
    checkpoint = read("Mistral-7B-Instruct-v0.3", tmp_path)
    ids = checkpoint.chat.encode(ASKED)
    pieces = [str(checkpoint.chat.backend.id_to_token(token)) for token in ids]
    assert (pieces[0], pieces[1], pieces[-1]) == ("<s>", "[INST]", "[/INST]")
    assert "".join(pieces[2:-1]).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").strip() == "A mug."
    assert len(ids) < 12


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("Qwen2.5-VL-7B-Instruct", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"),
        ("Qwen3-VL-8B-Instruct", ""),
        ("Qwen3-VL-2B-Instruct", ""),
    ],
)
def test_a_picture_stands_where_the_template_puts_it(name: str, system: str, tmp_path: Path) -> None:
    turn = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>A mug.<|im_end|>\n<|im_start|>assistant\n"
    assert prompt(read(name, tmp_path), IN_PARTS) == system + turn


READ = """
import json, sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from aiservices.handlers.torch_runtime import prepare_torch
prepare_torch()
from transformers.utils.import_utils import is_mistral_common_available
from aiservices.handlers.mistral import AUTO_CLASSES
from aiservices.handlers.text.checkpoint import read_checkpoint
chat = read_checkpoint(Path(sys.argv[1]), AUTO_CLASSES).chat
print(json.dumps([is_mistral_common_available(), chat.encode([{"role": "user", "content": "A mug."}])]))
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["Ministral-3-3B-Instruct-2512", "Mistral-7B-Instruct-v0.3"])
def test_with_mistral_common_installed_the_tokens_are_the_same(name: str, tmp_path: Path) -> None:
    """A package of that name suffices for transformers to take its class where a folder has tekken.json."""
    folder, packages = tmp_path / "model", tmp_path / "packages"
    folder.mkdir()
    expected = read(name, folder).chat.encode(ASKED)
    (packages / "mistral_common").mkdir(parents=True)
    (packages / "mistral_common" / "__init__.py").write_text("")
    info = packages / "mistral_common-99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mistral_common\nVersion: 99.0\n")
    (info / "RECORD").write_text("mistral_common/__init__.py,,\n")
    (info / "top_level.txt").write_text("mistral_common\n")
    path = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, "-c", READ, folder], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [True, expected]
    assert run.stderr == ""
