"""Count the words of a text."""

from collections.abc import Sequence
from typing import Annotated

import attrs
from msgspec import Meta

from aiservices import BatchHandler, Task


@attrs.frozen
class CountInput:
    """What to count."""

    text: Annotated[str, Meta(min_length=1, max_length=10_000, description="The text.")]


@attrs.frozen
class CountOutput:
    """How many there are."""

    words: int


class CountWords(BatchHandler[CountInput, CountOutput]):
    """Text in, a number out."""

    def predict(self, tasks: Sequence[Task[CountInput]]) -> list[CountOutput]:
        """Answer a batch: one output for each task, in the same order."""
        return [CountOutput(words=len(task.item.text.split())) for task in tasks]
