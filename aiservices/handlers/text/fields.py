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
Seed = Annotated[
    Annotated[int, Meta(ge=0, le=2**53 - 1)] | None,
    Meta(description="Repeats a sampled answer: same input and seed, same text. Needs a temperature."),
]
