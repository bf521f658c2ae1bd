"""Ordinary checkpoints load without a word, and their tokenizers split text as their files say."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
pytest.importorskip("llguidance", reason="needs llguidance: pip install 'aiservices[mistral]'")

from aiservices.handlers.mistral import AUTO_CLASSES
from aiservices.handlers.qwen import DescribeImage
from aiservices.handlers.text.checkpoint import read_checkpoint
from tests.handlers.text.checkpoints.shapes import SHAPES, write

ROOT = Path(__file__).parents[4]
TAKEN = {**DescribeImage.auto_classes, **AUTO_CLASSES}
LOAD_ALL = """
import sys
from pathlib import Path
from aiservices.handlers.mistral import GenerateDescription
from aiservices.handlers.qwen import DescribeImage
for folder in sys.argv[1:]:
    print(folder, flush=True)
    handler = DescribeImage() if "Qwen" in folder else GenerateDescription()
    handler.load(Path(folder), "cpu", {"max_new_tokens": 220})
    handler.unload()
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each shape, written once."""
    return {
        shape.repository: write(shape, tmp_path_factory.mktemp(shape.repository.replace("/", "-"))) for shape in SHAPES
    }


@pytest.mark.timeout(300)
def test_checkpoints_load_without_a_word(folders: dict[str, Path]) -> None:
    paths = [str(folder) for folder in folders.values()]
    # In a process of its own: much is warned of once in the life of one, and logged to stderr if nobody listens.
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", LOAD_ALL, *paths],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        check=False,
    )
    assert done.stdout.decode().splitlines() == paths
    assert done.returncode == 0


@pytest.mark.parametrize("repository", [shape.repository for shape in SHAPES])
def test_text_is_split_as_tokenizer_json_says(repository: str, folders: dict[str, Path]) -> None:
    from tokenizers import Tokenizer

    written = Tokenizer.from_file(str(folders[repository] / "tokenizer.json"))
    chat = read_checkpoint(folders[repository], TAKEN).chat
    for text in ("A red mug", "  two  spaces\n\nIt's 2026: größe, 日本語 \N{PILE OF POO}", "[INST] HTTPServer<s>x</s>"):
        ids = written.encode(text, add_special_tokens=False).ids
        assert chat.backend.encode(text, add_special_tokens=False).ids == ids
        assert chat.backend.decode(ids) == written.decode(ids)


@pytest.mark.parametrize("repository", [shape.repository for shape in SHAPES if not shape.sees])
def test_a_full_vocabulary_of_mistrals_is_neither_warned_of_nor_split_otherwise(
    repository: str, folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Above 100 000 tokens transformers proposes another way to split words; v0.3's would lose its spaces by it."""
    from tokenizers import Tokenizer

    folder = shutil.copytree(folders[repository], tmp_path, dirs_exist_ok=True)
    written = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = written["model"]["vocab"]
    vocabulary.update({f"word{number}": number for number in range(len(vocabulary), 131072)})
    (folder / "tokenizer.json").write_text(json.dumps(written))
    listener = logging.getLogger("transformers")
    listener.addHandler(caplog.handler)
    try:
        chat = read_checkpoint(folder, TAKEN).chat
    finally:
        listener.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    text = "Two words: HTTPServer, 2026."
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert chat.backend.encode(text, add_special_tokens=False).ids == ids


@pytest.mark.parametrize("name", ["mistral", "qwen2.5-vl"])
def test_the_demo_models_are_greedy(name: str) -> None:
    assert read_checkpoint(ROOT / "aiservices" / "demo" / name, TAKEN).sampling.temperature == 0.0
