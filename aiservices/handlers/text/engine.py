"""What every engine that continues texts can do. Rows join and leave between two steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from aiservices.handler import MediaKind, Task, Unit
from aiservices.handlers.text.generation import Generated, GenerationRequest, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

P = ParamSpec("P")
T = TypeVar("T")

Ended = tuple[Task[GenerationRequest], Generated | Exception]
"""A row that left the engine, and what came of it."""


class TextEngine(Protocol):
    """The rows of one model. All but ``render`` run on the model's thread."""

    @property
    def window(self) -> int:
        """Tokens of prompt and answer together."""

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""

    def __len__(self) -> int:
        """Rows that a step has yet to return."""

    def render(self, token_ids: Sequence[int], pictures: Sequence[PilImage] = ()) -> Prompt:
        """Make the prompt that this engine reads. Runs in the pool, on several threads at once.

        Args:
            token_ids: the text, with one token where each picture goes.
            pictures: RGB, in the order of their tokens.
        """

    def admit(self, tasks: Sequence[Task[GenerationRequest]]) -> None:
        """Let rows join."""

    def step(self) -> Sequence[Ended]:
        """Take one more token for the running rows; return the rows that ended."""

    def evict(self, tasks: Sequence[Task[GenerationRequest]]) -> None:
        """Take rows out, wherever they are; unknown ones are ignored."""

    def reset(self) -> None:
        """Forget every row and the memory they hold."""

    def close(self) -> None:
        """Give the model back; the engine is of no use after that."""


def generate(engine: TextEngine, requests: Sequence[GenerationRequest]) -> list[Generated]:
    """Answer these requests alone, as a warm-up does.

    Raises:
        Exception: what the first failed row failed with.
    """
    tasks: list[Task[GenerationRequest]] = [Task(request, WarmUpContext()) for request in requests]
    engine.admit(tasks)
    results: dict[int, Generated] = {}
    while len(engine):
        for task, result in engine.step():
            if isinstance(result, Exception):
                engine.reset()
                raise result
            results[id(task)] = result
    return [results[id(task)] for task in tasks]


class WarmUpContext:
    """The surroundings of a row that no caller waits for, as :class:`~aiservices.handler.Context` has them."""

    job_id = "warm-up"
    cancelled = False

    def progress(self, fraction: float) -> None:
        """Tell nobody."""

    def wait(self, reason: str | None) -> None:
        """Tell nobody."""

    def emit(self, chunk: Any) -> None:
        """Tell nobody."""

    def count(self, unit: Unit, amount: float) -> None:
        """Count nothing."""

    async def fetch(self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None) -> bytes:
        """Not for a warm-up."""
        raise NotImplementedError

    async def run_in_child(
        self, function: Callable[..., tuple[dict[str, Any], bytes]], data: bytes, /, *, field: str, **arguments: Any
    ) -> tuple[dict[str, Any], bytearray]:
        """Not for a warm-up."""
        raise NotImplementedError

    async def run_in_pool(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Not for a warm-up."""
        raise NotImplementedError
