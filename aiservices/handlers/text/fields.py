"""Fields of an input that every text-generating service takes."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

MaxNewTokens = Annotated[
    Annotated[int, Meta(ge=1, le=32_768)] | None,
    Meta(description="At most this many tokens are generated; the service has a limit of its own."),
]
Temperature = Annotated[
    Annotated[float, Meta(ge=0, le=2)] | None,
    Meta(
        description="0 always takes the likeliest token; higher values vary more. "
        "Default: what the checkpoint asks for, 0 if it asks for nothing."
    ),
]
TopP = Annotated[
    Annotated[float, Meta(gt=0, le=1)] | None,
    Meta(description="Sample only among the likeliest tokens that have this probability together."),
]
TopK = Annotated[
    Annotated[int, Meta(ge=0, le=1_000_000)] | None,
    Meta(description="Sample only among so many of the likeliest tokens; 0 for all of them."),
]
PresencePenalty = Annotated[
    Annotated[float, Meta(ge=-2, le=2)] | None,
    Meta(
        description="Above 0, tokens that the answer holds already become less likely; below, more likely. "
        "Tokens of the prompt do not count."
    ),
]
"""Subtracted from logits once, however often a token was there: as OpenAI's API and vLLM have it."""
StopText = Annotated[str, Meta(min_length=1, max_length=64)]
Stop = Annotated[
    StopText | Annotated[list[StopText], Meta(min_length=1, max_length=4)] | None,
    Meta(description="One text, or up to four: the answer ends before the first of them.", examples=[["\n\n"]]),
]
SystemPrompt = Annotated[
    Annotated[str, Meta(min_length=1, max_length=4000)] | None,
    Meta(
        description="What the model is told before the request, if the checkpoint's chat template has a place for it.",
        examples=["Answer in one short sentence."],
    ),
]
Seed = Annotated[
    Annotated[int, Meta(ge=0, le=2**53 - 1)] | None,
    Meta(description="Repeats a sampled answer: same input and seed, same text. Needs a temperature."),
]


def stop_texts(stop: str | list[str] | None) -> tuple[str, ...]:
    """Make one text or several what a :class:`~aiservices.handlers.text.generation.GenerationRequest` takes."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())
