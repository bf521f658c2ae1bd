"""What narrower weights change in the demo models' answers: python -m tools.demo_weights.narrow [--count 200].

The evaluation's held-out prompts, answered by the services' own engine with each kind of weights. A row says how many
answers are letter for letter those of float32, and how many are the right ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from aiservices.handlers.listing import build_schema
from aiservices.handlers.mistral import GenerateDescription
from aiservices.handlers.qwen import DescribeImage, DescribeImageInput
from aiservices.handlers.text.engine import generate
from aiservices.handlers.text.generation import GenerationRequest
from aiservices.handlers.text.json_schema import read_schema
from tools.demo_weights.dialogue import caption_exchange
from tools.demo_weights.evaluate import DESCRIBE_FOLDER, LISTING_FOLDER
from tools.demo_weights.listings import random_example
from tools.demo_weights.pictures import picture

KINDS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float32, int8": {"dtype": "float32", "weights": "int8"},
    "bfloat16, int8": {"dtype": "bfloat16", "weights": "int8"},
}
_SEED = 90_001
"""As in the evaluation, apart from every training seed."""
_BATCH = 16


def _answers(service: Any, requests: Sequence[GenerationRequest]) -> list[str]:
    starts = range(0, len(requests), _BATCH)
    return [
        result.text for start in starts for result in generate(service.loaded.engine, requests[start : start + _BATCH])
    ]


def describe(options: dict[str, str], count: int) -> tuple[list[str], list[str]]:
    """Describe held-out pictures.

    Returns:
        The answers, and the right ones.
    """
    service = DescribeImage()
    service.load(DESCRIBE_FOLDER, "cpu", options)
    drawn = [picture((_SEED, 1, i), held_out=True) for i in range(count)]
    exchanges = [caption_exchange(product) for product, _ in drawn]
    requests = [
        service._request(DescribeImageInput("", prompt=question), [image])
        for (question, _), (_, image) in zip(exchanges, drawn, strict=True)
    ]
    return _answers(service, requests), [answer for _, answer in exchanges]


def listing(options: dict[str, str], count: int) -> tuple[list[str], list[str]]:
    """Write listings for held-out products, half of them drawn ones.

    Returns:
        The answers, and the right ones.
    """
    service = GenerateDescription()
    service.load(LISTING_FOLDER, "cpu", options)
    rng = np.random.default_rng((_SEED, 1))
    examples = [random_example(rng, held_out=True, drawn_share=0.5) for _ in range(count)]
    engine, chat = service.loaded.engine, service.loaded.checkpoint.chat
    requests = [
        GenerationRequest(
            engine.render(chat.encode([{"role": "user", "content": example.message}])),
            max_new_tokens=512,
            grammar=service._grammars.get(read_schema(build_schema(example.categories))),
        )
        for example in examples
    ]
    return _answers(service, requests), [example.listing.to_json() for example in examples]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_weights.narrow", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="prompts of each model")
    count = parser.parse_args().count
    print(f"{count} prompts each\n\n| model | weights | as float32's | right |\n|---|---|---:|---:|")
    for name, answer in (("describe", describe), ("listing", listing)):
        first: list[str] = []
        for kind, options in KINDS.items():
            answers, right = answer(options, count)
            first = first or answers
            same, good = (
                sum(a == b for a, b in zip(answers, others, strict=True)) / count for others in (first, right)
            )
            print(f"| {name} | {kind} | {same:.1%} | {good:.1%} |", flush=True)


if __name__ == "__main__":
    main()
