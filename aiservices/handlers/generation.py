"""Words that the text-generating services share: what is asked of a generation, and what comes out.

Nothing here needs torch; the engine that decodes is :mod:`aiservices.handlers.engine`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import attrs
from msgspec import Meta

FinishReason = Literal["stop", "length"]
"""``stop``: the model ended its answer; ``length``: the limit of new tokens ended it."""

MaxNewTokens = Annotated[
    Annotated[int, Meta(ge=1, le=32_768)] | None,
    Meta(description="At most this many tokens are generated; the service has a limit of its own."),
]
Temperature = Annotated[
    Annotated[float, Meta(ge=0, le=2)] | None,
    Meta(description="0 (the default) always takes the likeliest token; higher values vary more."),
]
TopP = Annotated[
    Annotated[float, Meta(gt=0, le=1)] | None,
    Meta(description="Sample only among the likeliest tokens that have this probability together."),
]
Seed = Annotated[
    Annotated[int, Meta(ge=0, le=2**53 - 1)] | None,
    Meta(description="Repeats a sampled answer: same input and seed, same text. Needs a temperature."),
]


@attrs.frozen
class Usage:
    """What one answer took."""

    prompt_tokens: Annotated[int, Meta(ge=0, description="Tokens read, those of the picture included.")]
    completion_tokens: Annotated[int, Meta(ge=0, description="Tokens generated, the end token included.")]
    picture_tokens: Annotated[int, Meta(ge=0, description="Tokens the picture took.")] = 0
