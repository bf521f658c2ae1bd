"""The two text services of the package with vLLM as their engine: what they answer is what the own engine answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
pytest.importorskip("llguidance", reason="needs llguidance: pip install 'aiservices[mistral]'")

import aiservices
from aiservices.errors import InvalidInput, ServiceError
from aiservices.handlers.mistral import GenerateDescription, GenerateDescriptionInput
from aiservices.handlers.qwen import DescribeImage, DescribeImageInput
from tests.handlers.test_qwen import picture
from tests.handlers.text.vllm.conftest import REAL
from tests.handlers.text_fakes import FakeContext, step_to_end, tasks_for

DEMO = Path(aiservices.__file__).parent / "demo"

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.demo,
    pytest.mark.timeout(300 if REAL else 60),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.skipif(not (DEMO / "mistral" / "model.safetensors").exists(), reason="needs the demo weights"),
]

OPTIONS = {"dtype": "float32", "cache_gib": 0.125}


def outputs(handler: Any, items: list[Any]) -> list[Any]:
    tasks = tasks_for(items)
    handler.admit(tasks)
    return [handler.postprocess(result) for result in step_to_end(handler, tasks)]


def describe(engine: str) -> list[Any]:
    handler = DescribeImage()
    handler.load(DEMO / "qwen2.5-vl", "cpu", {**OPTIONS, "engine": engine, "max_new_tokens": 40})
    items = [
        asyncio.run(
            handler.preprocess(
                DescribeImageInput("https://shop.example/mug.png"),
                FakeContext(picture=picture(n, (120 + 20 * n, 300 - 10 * n))),
            )
        )
        for n in range(16)
    ]
    answers = outputs(handler, items)
    with pytest.raises(InvalidInput, match=r"\$\.prompt: makes a prompt of \d+ tokens"):
        asyncio.run(
            handler.preprocess(
                DescribeImageInput("https://shop.example/mug.png", prompt="größe日" * 1300),
                FakeContext(picture=picture(1)),
            )
        )
    handler.unload()
    return answers


def test_sixteen_pictures_are_described_as_the_own_engine_describes_them() -> None:
    assert describe("vllm") == describe("own")


def listings(engine: str) -> list[Any]:
    handler = GenerateDescription()
    handler.load(DEMO / "mistral", "cpu", {**OPTIONS, "engine": engine})
    wares = [
        f"A {size} {colour} {ware}."
        for size in ("small", "large")
        for colour in ("red", "blue")
        for ware in ("mug", "hat")
    ]
    items = [asyncio.run(handler.preprocess(GenerateDescriptionInput(text), FakeContext())) for text in wares]
    answers = outputs(handler, items)
    handler.unload()
    return [(answer.title, answer.description, answer.keywords, answer.category) for answer in answers]


def test_listings_are_those_of_the_own_engine() -> None:
    assert listings("vllm") == listings("own")


def test_a_checkpoint_that_vllm_cannot_run_is_refused_with_its_reason(tmp_path: Path) -> None:
    if not REAL:
        pytest.skip("what vLLM refuses only it knows: scripts/test --vllm")
    handler = GenerateDescription()
    with pytest.raises(ServiceError, match=r"vLLM cannot load the model: .*max seq len.*|vLLM cannot load.*memory"):
        handler.load(DEMO / "mistral", "cpu", {**OPTIONS, "engine": "vllm", "cache_gib": 0.0001})
    handler.unload()
