"""Words that the text-generating services share: what is asked of a generation, and what comes out.

Nothing here needs torch; the engines that decode are in :mod:`aiservices.handlers.text.own` and
:mod:`aiservices.handlers.text.vllm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import attrs
from msgspec import Meta

from aiservices.errors import InvalidInput

if TYPE_CHECKING:
    from aiservices.handlers.text.grammar import Grammar

FinishReason = Literal["stop", "length"]
"""``stop``: the model ended its answer, or a stop text did; ``length``: the limit of new tokens ended it."""


@attrs.frozen
class Usage:
    """What one answer took."""

    prompt_tokens: Annotated[int, Meta(ge=0, description="Tokens read, those of pictures included.")]
    completion_tokens: Annotated[int, Meta(ge=0, description="Tokens generated, the end token included.")]
    picture_tokens: Annotated[int, Meta(ge=0, description="Tokens the pictures took.")] = 0


@attrs.frozen
class Sampling:
    """How the tokens of an answer are chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: sample among the likeliest tokens that have this probability together; 1 is all.
        top_k: sample among so many of the likeliest tokens; 0 is all.
        repetition_penalty: divides the logits of tokens seen before, those of the prompt included; 1 is none.
        presence_penalty: what the logits of tokens lose that the answer holds already; 0 is none.
        seed: of the choices; None for another one each time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    seed: int | None = None

    def but(self, **asked: Any) -> Sampling:
        """Put what a caller asked for in place of these; None leaves what is there."""
        return attrs.evolve(self, **{name: value for name, value in asked.items() if value is not None})


@attrs.frozen(eq=False)
class Prompt:
    """What a model reads before it answers.

    Attributes:
        token_ids: the text, with each picture's tokens where it stands.
        picture_tokens: how many of them are pictures'.
        content: what the engine that made the prompt keeps for itself, as the pictures' pixels.
    """

    token_ids: Sequence[int]
    picture_tokens: int = 0
    content: Any = None


@attrs.frozen(eq=False)
class GenerationRequest:
    """One generation: the prompt and how to continue it. Never changed, so that an attempt can be repeated.

    Attributes:
        prompt: made by the engine that is to continue it.
        max_new_tokens: where the answer is cut.
        stop: texts that end the answer, and are no part of it.
        grammar: what the answer has to follow; it ends by its grammar, so not by ``stop`` as well.
        label: a word of the service's own, which comes back with the answer.
    """

    prompt: Prompt
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None
    label: str = ""

    def __attrs_post_init__(self) -> None:
        if self.stop and self.grammar is not None:
            raise ValueError("a text that follows a grammar is whole only at the grammar's end: no stop texts")


@attrs.frozen
class Generated:
    """What a generation came to.

    Attributes:
        text: without what ended it.
        token_ids: all that were chosen, the end token included.
        label: that of the request.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    token_ids: tuple[int, ...] = attrs.field(repr=False)
    label: str = ""


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
