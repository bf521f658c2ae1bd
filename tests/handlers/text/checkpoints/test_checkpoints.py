"""Every checkpoint that ``services.toml`` names, by its files: load, prompt, one answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
pytest.importorskip("llguidance", reason="needs llguidance: pip install 'aiservices[mistral]'")

from aiservices.handlers.mistral import AUTO_CLASSES, GenerateDescription, GenerateDescriptionInput
from aiservices.handlers.qwen import DescribeImage, DescribeImageInput
from aiservices.handlers.text.chat import OWN_SYSTEM_PROMPT
from aiservices.handlers.text.checkpoint import read_checkpoint
from aiservices.handlers.text.generation import Sampling
from tests.handlers.test_qwen import picture
from tests.handlers.text.checkpoints.shapes import SHAPES, write
from tests.handlers.text_fakes import FakeContext, step_to_end, tasks_for

DEMO = Path(__file__).parents[4] / "aiservices" / "demo"
TAKEN = {**DescribeImage.auto_classes, **AUTO_CLASSES}
LOAD_ALL = """
import sys
from aiservices.handlers.mistral import GenerateDescription
from aiservices.handlers.qwen import DescribeImage
for folder in sys.argv[1:]:
    print(folder, flush=True)
    handler = DescribeImage() if "Qwen" in folder else GenerateDescription()
    handler.load(__import__("pathlib").Path(folder), "cpu", {"max_new_tokens": 220})
    handler.unload()
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each shape, written once."""
    return {
        repository: write(repository, tmp_path_factory.mktemp(repository.replace("/", "-"))) for repository in SHAPES
    }


def load(folder: Path, *, sees: bool, **options: Any) -> Any:
    handler: Any = DescribeImage() if sees else GenerateDescription()
    handler.load(folder, "cpu", {"max_new_tokens": 220, "dtype": "float32", **options})
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
    """Take a request to its end."""
    tasks = tasks_for([request])
    handler.admit(tasks)
    (result,) = step_to_end(handler, tasks)
    return handler.postprocess(result)


@pytest.mark.parametrize("repository", SHAPES)
def test_a_checkpoint_answers(repository: str, folders: dict[str, Path]) -> None:
    handler = load(folders[repository], sees=SHAPES[repository].sees)
    output = answer(handler, ask(handler))
    assert output.description
    assert output.usage.completion_tokens
    assert bool(output.usage.picture_tokens) == SHAPES[repository].sees
    handler.unload()


def test_checkpoints_load_without_a_word(folders: dict[str, Path]) -> None:
    paths = [str(folder) for folder in folders.values()]
    # In a process of its own: many warnings are given once in the life of one.
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", LOAD_ALL, *paths],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=DEMO.parents[1],
        check=False,
    )
    assert done.stdout.decode().splitlines() == paths
    assert done.returncode == 0


@pytest.mark.parametrize("repository", SHAPES)
def test_text_is_split_as_tokenizer_json_says(repository: str, folders: dict[str, Path]) -> None:
    from tokenizers import Tokenizer

    written = Tokenizer.from_file(str(folders[repository] / "tokenizer.json"))
    chat = read_checkpoint(folders[repository], TAKEN).chat
    for text in ("A red mug", "  two  spaces\n\nIt's 2026: größe, 日本語 \N{PILE OF POO}", "[INST] HTTPServer<s>x</s>"):
        ids = written.encode(text, add_special_tokens=False).ids
        assert chat.backend.encode(text, add_special_tokens=False).ids == ids
        assert chat.backend.decode(ids) == written.decode(ids)


def test_qwen3_samples_as_it_asks_for_and_greedily_if_the_caller_says_so(folders: dict[str, Path]) -> None:
    handler = load(folders["Qwen/Qwen3-VL-4B-Instruct"], sees=True)
    assert ask(handler).sampling == Sampling(0.7, 0.8, 20, presence_penalty=1.5)
    assert ask(handler, temperature=0.0).sampling.temperature == 0.0
    assert ask(handler, top_p=0.5, seed=3).sampling == Sampling(0.7, 0.5, 20, presence_penalty=1.5, seed=3)
    assert answer(handler, ask(handler, temperature=0.0)) == answer(handler, ask(handler, temperature=0.0))
    handler.unload()


def test_a_temperature_of_next_to_nothing_is_greedy(folders: dict[str, Path]) -> None:
    checkpoint = read_checkpoint(folders["Qwen/Qwen2.5-VL-7B-Instruct"], TAKEN)
    assert checkpoint.sampling == Sampling(repetition_penalty=1.05)


@pytest.mark.parametrize("repository", [name for name in SHAPES if name.startswith("mistralai/")])
def test_mistrals_are_greedy_until_the_caller_says_otherwise(repository: str, folders: dict[str, Path]) -> None:
    sampling = read_checkpoint(folders[repository], TAKEN).sampling
    assert sampling == Sampling()
    assert sampling.but(temperature=0.4) == Sampling(0.4)


@pytest.mark.parametrize("name", ["mistral", "qwen2.5-vl"])
def test_the_demo_models_are_greedy(name: str) -> None:
    assert read_checkpoint(DEMO / name, TAKEN).sampling.temperature == 0.0


def test_ministral_gets_a_short_system_prompt(folders: dict[str, Path]) -> None:
    handler = load(folders["mistralai/Ministral-3-3B-Instruct-2512"], sees=False)
    backend = handler.loaded.checkpoint.chat.backend

    def text(**fields: Any) -> str:
        return str(backend.decode(list(ask(handler, **fields).prompt.token_ids), skip_special_tokens=False))

    assert text().startswith(f"<s>[SYSTEM_PROMPT]{OWN_SYSTEM_PROMPT}[/SYSTEM_PROMPT][INST]")
    assert text(system_prompt="Be brief.").startswith("<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]")
    handler.unload()
