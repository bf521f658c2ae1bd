"""Words that the text-generating services share: what is asked of a generation, and what comes out.

Nothing here needs torch; the engine that decodes is :mod:`aiservices.handlers.text.own.engine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import attrs
from msgspec import Meta

from aiservices.errors import InvalidInput
from aiservices.handlers.torch_runtime import DtypeName

if TYPE_CHECKING:
    import torch

    from aiservices.handlers.text.grammar import Grammar

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


@attrs.frozen
class GenerationOptions:
    """Options that every text-generating service takes."""

    dtype: DtypeName = "auto"
    """Type of the weights; ``auto`` is bfloat16 on CUDA and float32 on CPU."""
    cpu_threads: Annotated[int, Meta(ge=1, le=256)] = 1
    """Threads of torch's CPU kernels on the model's thread."""
    max_new_tokens: Annotated[int, Meta(ge=1, le=32_768)] = 512
    """Most tokens of one answer; a request may ask for fewer."""
    prefill_chunk_tokens: Annotated[int, Meta(ge=16)] = 1024
    """Prompt tokens read in one step: more finish prompts sooner, fewer let running rows wait less."""
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"
    """Which attention of transformers runs."""


@attrs.frozen(eq=False)
class Picture:
    """A picture as a vision tower takes it."""

    pixel_values: torch.Tensor
    """Normalised patches, ``[patches, channels * frames * patch_px * patch_px]``."""
    grid_thw: torch.Tensor
    """Patches along time, height and width, ``[1, 3]``."""
    position_ids: torch.Tensor
    """Time, height and width of every prompt token, ``[3, prompt_tokens]``."""
    rope_delta: int
    """What to add to a later token's place to get its position: a picture spans fewer positions than tokens."""
    first_token: int
    """Where in the prompt the picture's tokens begin."""
    tokens: int
    """How many there are."""


@attrs.frozen(eq=False)
class GenerationRequest:
    """One generation: the prompt and how to continue it. Never changed, so that an attempt can be repeated.

    Attributes:
        token_ids: the prompt.
        max_new_tokens: where the answer is cut.
        temperature: 0 takes the likeliest token.
        top_p: sample among the likeliest tokens that have this probability together; 1 is all.
        top_k: sample among so many of the likeliest tokens; 0 is all.
        repetition_penalty: divides the logits of tokens seen before; 1 is none.
        seed: of the choices; None for another one each time.
        grammar: what the answer has to follow.
        picture: what the prompt's placeholders stand for.
    """

    token_ids: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    grammar: Grammar | None = None
    picture: Picture | None = None


@attrs.frozen
class Generated:
    """What a generation came to.

    Attributes:
        text: without the token that ended it.
        token_ids: all that were chosen, that one included.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    token_ids: tuple[int, ...] = attrs.field(repr=False)


def fit_new_tokens(prompt_tokens: int, asked: int | None, limit: int, window: int, field: str) -> int:
    """Decide how many tokens a generation may have.

    Args:
        prompt_tokens: length of the prompt.
        asked: what the caller asked for, if anything.
        limit: the service's own limit.
        window: tokens that the model can attend to, prompt and answer together.
        field: JSON path of the field that makes the prompt long, for the message.

    Raises:
        InvalidInput: prompt and answer do not fit into the window.
    """
    room = window - prompt_tokens
    if room < 1:
        raise InvalidInput(field, f"makes a prompt of {prompt_tokens} tokens; the model takes at most {window - 1}")
    if asked is None:
        return min(limit, room)
    if min(asked, limit) > room:
        raise InvalidInput(
            "$.max_new_tokens", f"at most {room} fit beside the prompt of {prompt_tokens} tokens (context: {window})"
        )
    return min(asked, limit)
