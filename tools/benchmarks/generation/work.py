"""The jobs that every side does, and the model that does them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import msgspec

from aiservices.handlers.listing import DEFAULT_CATEGORIES, build_prompt, build_schema

DEMO = Path(__file__).parents[3] / "aiservices" / "demo" / "mistral"
_LEAST_TOKENS, _MOST_TOKENS = 150, 230
"""Answers of random weights end where their budget does, so that their lengths are mixed by it."""


@attrs.frozen
class Work:
    """One listing to write.

    Attributes:
        description: of the picture.
        max_new_tokens: of the answer.
    """

    description: str
    max_new_tokens: int

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat that the service makes of it."""
        return [{"role": "user", "content": build_prompt(self.description)}]


def mixed_work(count: int, seed: int = 0) -> list[Work]:
    """Make listings of different prompts and lengths, the same ones for the same seed."""
    dice = random.Random(seed)
    sizes, colours, wares = ("small", "large"), ("red", "blue", "green", "white"), ("mug", "boot", "hat", "lamp")
    return [
        Work(
            " ".join(
                f"A {dice.choice(sizes)} {dice.choice(colours)} {dice.choice(wares)} on a wooden background."
                for _ in range(dice.choice((1, 1, 2, 6)))
            ),
            dice.randint(_LEAST_TOKENS, _MOST_TOKENS),
        )
        for _ in range(count)
    ]


def schema() -> dict[str, Any]:
    """What every answer follows."""
    return build_schema(DEFAULT_CATEGORIES)


def write_work(path: Path, work: Sequence[Work]) -> None:
    """Write jobs for a process of another environment."""
    path.write_bytes(msgspec.json.encode(work))


def read_work(path: Path) -> list[Work]:
    """Read what :func:`write_work` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=list[Work])


def write_model(folder: Path, millions: int) -> Path:
    """Write a Mistral of so many million random weights with the demo's tokenizer."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    settings = json.loads((DEMO / "config.json").read_text())
    hidden = max(128, round((millions * 1e6 / 12 / 12) ** 0.5 / 64) * 64)
    layers = max(1, round(millions * 1e6 / (12 * hidden**2)))
    config = MistralConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        head_dim=64,
        max_position_embeddings=4096,
        sliding_window=None,
        tie_word_embeddings=False,
        eos_token_id=settings["eos_token_id"],
        bos_token_id=settings["bos_token_id"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        MistralForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(DEMO / name, folder)
    return folder
