"""A service that answers at once, with each kind of field that an input can have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import attrs
from msgspec import Meta

from aiservices.handler import BatchHandler, Task


@attrs.frozen
class WordsInput:
    """Some words, and what to do with them."""

    text: Annotated[str, Meta(min_length=1, max_length=200, description="The words.")]
    tags: Annotated[list[Annotated[str, Meta(max_length=20)]], Meta(max_length=5)] = attrs.Factory(list)
    count: Annotated[int, Meta(ge=1, le=9)] = 1
    weight: Annotated[float, Meta(ge=0, le=1)] = 0.5
    case: Literal["upper", "lower"] = "upper"
    note: str | None = None


@attrs.frozen
class WordsOutput:
    """The words."""

    text: str


class Words(BatchHandler[WordsInput, WordsOutput]):
    """Says words again."""

    def predict(self, tasks: Sequence[Task[WordsInput]]) -> list[WordsOutput]:
        """Say them."""
        return [WordsOutput((each.item.text * each.item.count)[:200]) for each in tasks]
