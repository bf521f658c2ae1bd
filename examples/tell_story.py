"""Tell a story word by word, in batches and streamed; the model is a Markov chain of the tales in a folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any

import attrs
from msgspec import Meta

from aiservices import InvalidInput, ServiceError, StepHandler, Task, read_options

Chain = Mapping[tuple[str, ...], Sequence[str]]
"""Some words in a row -> every word that follows them in the tales; no words -> how sentences begin."""


@attrs.frozen
class StoryInput:
    """What to tell."""

    begin: Annotated[str, Meta(max_length=1000, description="How the story begins.", examples=["The fox"])] = ""
    words: Annotated[int, Meta(ge=1, le=1000, description="How many words it has.")] = 50
    seed: Annotated[int | None, Meta(description="The same seed tells the same story; null: another each time.")] = None


@attrs.frozen
class StoryOutput:
    """What was told."""

    story: str
    words: int


@attrs.frozen
class StoryOptions:
    """The ``options`` of the service.

    Attributes:
        order: how many words decide on the next one: with more, the stories are closer to the tales.
    """

    order: Annotated[int, Meta(ge=1, le=5)] = 2


@attrs.define
class Story:
    """One row of the batch: the words so far, and its own source of chance."""

    words: list[str]
    random: Random


class TellStory(StepHandler[StoryInput, StoryOutput]):
    """Every step adds one word to each story."""

    Options = StoryOptions

    def __init__(self) -> None:
        self._order = 1
        self._chain: Chain = {}
        self._stories: dict[Task[StoryInput], Story] = {}

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        """Read the tales."""
        self._order = read_options(StoryOptions, options).order
        tales = sorted(model_dir.glob("*.txt")) if model_dir else []
        if not tales:
            raise ServiceError("model has to name a folder with tales in it (*.txt)")
        self._chain = build_chain((tale.read_text(encoding="utf-8").split() for tale in tales), self._order)

    def validate(self, input: StoryInput) -> None:
        """Refuse what the types allow and no story can be."""
        if len(input.begin.split()) >= input.words:
            raise InvalidInput("$.words", "expected more words than the story begins with")

    def admit(self, tasks: Sequence[Task[StoryInput]]) -> None:
        """Let stories join those that are being told."""
        for task in tasks:
            self._stories[task] = Story(task.item.begin.split(), Random(task.item.seed))

    def step(self) -> list[tuple[Task[StoryInput], Story]]:
        """Add a word to every story; those that are complete leave."""
        for task, story in self._stories.items():
            story.words.append(self._next_word(story))
            task.context.emit(story.words[-1])
            task.context.progress(len(story.words) / task.item.words)
        complete = [task for task, story in self._stories.items() if len(story.words) == task.item.words]
        return [(task, self._stories.pop(task)) for task in complete]

    def evict(self, tasks: Sequence[Task[StoryInput]]) -> None:
        """Stop telling stories that nobody waits for."""
        for task in tasks:
            self._stories.pop(task, None)

    def reset(self) -> None:
        """Stop telling any."""
        self._stories.clear()

    def postprocess(self, result: Story) -> StoryOutput:
        """Join the words; a story that ends in the middle of a sentence says so."""
        text = " ".join(result.words)
        return StoryOutput(story=text if text.endswith((".", "!", "?")) else f"{text} …", words=len(result.words))

    def _next_word(self, story: Story) -> str:
        """Draw a word that follows the last ones somewhere in the tales; where none does, look at fewer of them."""
        for length in range(self._order, 0, -1):
            if following := self._chain.get(tuple(story.words[-length:])):
                return story.random.choice(following)
        return story.random.choice(self._chain[()])


def build_chain(tales: Iterable[Sequence[str]], order: int) -> Chain:
    """Note which words follow which, for up to ``order`` words in a row."""
    chain: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for words in tales:
        for place, word in enumerate(words):
            if place == 0 or words[place - 1].endswith((".", "!", "?")):
                chain[()].append(word)
            for length in range(1, min(order, place) + 1):
                chain[tuple(words[place - length : place])].append(word)
    return dict(chain)
