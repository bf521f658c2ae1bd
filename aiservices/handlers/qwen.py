"""Describe the product in a picture with a Qwen vision-language model (Qwen2-VL, Qwen2.5-VL or Qwen3-VL)."""

from __future__ import annotations

from typing import Annotated, Any

import attrs
from msgspec import Meta

from aiservices.handlers.generation import FinishReason, MaxNewTokens, Seed, Temperature, TopP, Usage

DEFAULT_PROMPT = "Describe the product in this picture: what it is, its colour, pattern, size and background."


@attrs.frozen
class DescribeImageInput:
    """A picture and, if wanted, what to say about it."""

    image_url: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=15_000_000,
            description="The picture: an http or https URL, or a data: URL that holds it.",
            examples=["https://example.com/mug.jpg"],
            extra_json_schema={"format": "uri"},
        ),
    ]
    prompt: Annotated[
        Annotated[str, Meta(max_length=4000)] | None,
        Meta(description="What to ask about the picture.", examples=[DEFAULT_PROMPT]),
    ] = None
    max_new_tokens: MaxNewTokens = None
    temperature: Temperature = None
    top_p: TopP = None
    seed: Seed = None


@attrs.frozen
class DescribeImageOutput:
    """What the picture shows."""

    description: Annotated[str, Meta(description="The model's answer.")]
    finish_reason: Annotated[FinishReason, Meta(description="Whether the answer ended by itself or at its limit.")]
    usage: Usage


def build_messages(prompt: str | None = None) -> list[dict[str, Any]]:
    """Make the one user turn, picture first, that a chat template renders.

    Args:
        prompt: what to ask; None or empty takes :data:`DEFAULT_PROMPT`.
    """
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt or DEFAULT_PROMPT}]}]
