"""What a handler may need of its surroundings while it works on one job, and the job as its model sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar

import attrs

ItemT = TypeVar("ItemT")
T = TypeVar("T")
P = ParamSpec("P")

MediaKind = Literal["image", "audio"]
"""What a fetched file has to be, judged by its first bytes."""

Unit = Literal["tokens", "audio_seconds"]
"""What :meth:`Context.count` counts: tokens that a model chose, or seconds of the sound that it made."""


class Context(Protocol):
    """What a handler may need of its surroundings while it works on one job."""

    @property
    def job_id(self) -> str:
        """The job's id, for messages; never a path."""

    @property
    def cancelled(self) -> bool:
        """Whether the job has ended meanwhile (cancelled, timed out, drained). Readable from any thread."""

    def progress(self, fraction: float) -> None:
        """Report how much is done, 0 to 1. Callable from any thread."""

    def wait(self, reason: str | None) -> None:
        """Say why the model lets this job stand still after it took it; None once it goes on. From any thread."""

    def emit(self, chunk: Any) -> None:
        """Add one chunk to the job's stream. Callable from any thread; the buffer is bounded.

        Args:
            chunk: a text, or what JSON can hold, with ``bytes`` for what is base64 on the wire.
        """

    def count(self, unit: Unit, amount: float) -> None:
        """Count what the model made since the last call, whatever becomes of the job. Callable from any thread."""

    async def fetch(self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None) -> bytes:
        """Download an ``http``, ``https`` or ``data:`` URL that the caller gave, through the guard. On the loop.

        Args:
            url: as the caller gave it.
            field: JSON path of the input field, for messages, as ``$.image_url``.
            kind: what the bytes have to be.
            max_bytes: a bound below the configured one.

        Raises:
            FetchError: whatever went wrong, naming ``field``.
        """

    async def run_in_pool(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run CPU-heavy work (resizing, tokenising) in the service's thread pool."""

    async def run_in_child(
        self, function: Callable[..., tuple[dict[str, Any], bytes]], data: bytes, /, *, field: str, **arguments: Any
    ) -> tuple[dict[str, Any], bytearray]:
        """Run a decoder on bytes of a caller in a process that may crash, and is killed at its limit or the job's end.

        Args:
            function: called as ``function(data, **arguments)``; of a module's top level, which the process imports
                (never torch); gives what JSON can hold, and raw bytes.
                What comes back is to be checked: it is the caller's.
            data: what the caller sent.
            field: JSON path of the input field, for messages; the function gets it too.
            arguments: what JSON can hold.

        Raises:
            InvalidInput: the function raised it, or took too much time or memory, or crashed.
        """


@attrs.define(eq=False)
class Task(Generic[ItemT]):
    """One attempt at one job as the model's thread sees it: the preprocessed item and its context."""

    item: ItemT
    context: Context
