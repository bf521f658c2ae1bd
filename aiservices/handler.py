"""The contract between the house and the author of a service.

A service is one class: :class:`BatchHandler` where one call answers a whole batch, :class:`StepHandler` where the
answer grows step by step (text generation) and rows may join and leave between two steps. Every stage says which thread
it runs on; ``load``, ``predict``, ``admit``, ``step``, ``evict``, ``reset`` and ``unload`` of one handler run on one
and the same thread, so a handler needs no locks around its model.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, ParamSpec, Protocol, TypeVar

import attrs

if TYPE_CHECKING:
    from msgspec import Meta

InputT = TypeVar("InputT")
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
OutputT = TypeVar("OutputT")
T = TypeVar("T")
P = ParamSpec("P")

MediaKind = Literal["image", "audio"]
"""What a fetched file has to be, judged by its first bytes."""


FILE_MARK = "media_type_field"
"""Key in the ``extra`` of a field's :class:`msgspec.Meta` that :func:`base64_file` sets."""


def base64_file(description: str, *, media_type_field: str = "media_type") -> Meta:
    """Describe a field of an ``Output`` that holds a file in base64, so that the house may put the file into a bucket.

    The field ``audio`` then becomes ``audio_url``, a signed URL.

    Args:
        description: of the field.
        media_type_field: the field beside it that holds the file's media type, as ``audio/wav``.
    """
    from msgspec import Meta  # here, so that --help need not wait for it

    encoding = {"contentEncoding": "base64"}  # https://json-schema.org/draft/2020-12/json-schema-validation#section-8.3
    return Meta(description=description, extra_json_schema=encoding, extra={FILE_MARK: media_type_field})


@attrs.frozen
class VoiceInfo:
    """A voice that a caller may ask for by name.

    Attributes:
        language: two letters, where the voice is bound to one.
    """

    name: str
    description: str = ""
    language: str | None = None


class Context(Protocol):
    """What a handler may need of the house while it works on one job."""

    @property
    def job_id(self) -> str:
        """The job's id, for messages; never a path."""

    @property
    def cancelled(self) -> bool:
        """Whether the job has ended meanwhile (cancelled, timed out, drained). Readable from any thread."""

    @property
    def deadline(self) -> float | None:
        """When the job times out, in seconds of :func:`time.monotonic`; None before it runs."""

    def progress(self, fraction: float) -> None:
        """Report how much is done, 0 to 1. Callable from any thread."""

    def emit(self, chunk: Any) -> None:
        """Add one JSON-able chunk to the job's stream. Callable from any thread; the buffer is bounded."""

    async def fetch(self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None) -> bytes:
        """Download a stranger's ``http``, ``https`` or ``data:`` URL through the guard, on the loop.

        Args:
            url: as the caller gave it.
            field: JSON path of the input field, for messages, as ``$.image_url``.
            kind: what the bytes have to be.
            max_bytes: a bound below the configured one.

        Raises:
            FetchError: whatever went wrong, naming ``field``.
        """

    async def run_in_pool(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run CPU-heavy work (decoding, resizing, tokenising) in the service's thread pool."""


@attrs.define(eq=False)
class Task(Generic[ItemT]):
    """One attempt at one job as the model's thread sees it: the preprocessed item and its context."""

    item: ItemT
    context: Context


class Handler(abc.ABC, Generic[InputT, ItemT, ResultT, OutputT]):
    """What both kinds of handler share. Subclass :class:`BatchHandler` or :class:`StepHandler`.

    ``Input`` and ``Output`` are attrs classes whose fields carry types, limits and descriptions as
    ``Annotated[..., msgspec.Meta(...)]``. They give validation, the JSON schema in OpenAPI and the form on the page.
    """

    Input: ClassVar[type[Any]]
    Output: ClassVar[type[Any]]

    option_folders: ClassVar[Sequence[str]] = ()
    """Options that name folders: each takes what ``model`` takes, and ``load`` gets the local folder."""

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        """Load the weights and warm up. Runs on the model's thread.

        Args:
            model_dir: local folder that holds the whole model; None if the service names no model.
            device: ``cpu``, ``cuda`` or ``cuda:N``; never ``auto``.
            options: the free ``options`` table of the service, those of :attr:`option_folders` with local folders.

        Raises:
            ServiceError: to show its text as the reason why the service is FAILED.
        """

    def unload(self) -> None:
        """Give the model's memory back. Runs on the model's thread; also after a load that failed half-way."""

    def validate(self, input: InputT) -> None:
        """Check what the types cannot, before the job is accepted. Runs on the loop, so it has to be cheap.

        May run before ``load``: what only the loaded model knows is checked in ``preprocess``.

        Raises:
            InvalidInput: naming the field.
        """

    def voices_offered(self) -> Sequence[VoiceInfo]:
        """Voices that a caller may name, for ``GET …/voices``; none for a handler that does not speak. On the loop."""
        return ()

    async def preprocess(self, input: InputT, context: Context) -> ItemT:
        """Turn the input into what the model takes. Runs on the loop while earlier batches run; heavy parts through
        ``context.run_in_pool``. The default hands the input on as it is."""
        return input  # type: ignore[return-value]  # without a preprocess of its own, a handler's item is its input

    def postprocess(self, result: ResultT) -> OutputT:
        """Shape the output (encode audio, parse text). Runs in the pool. The default hands the result on."""
        return result  # type: ignore[return-value]  # without a postprocess of its own, its result is its output


class BatchHandler(Handler[InputT, ItemT, ResultT, OutputT]):
    """A handler whose ``predict`` answers a whole batch in one call."""

    @abc.abstractmethod
    def predict(self, tasks: Sequence[Task[ItemT]]) -> Sequence[ResultT | Exception]:
        """Answer one batch. Runs on the model's thread.

        Returns:
            One result per task in the same order; an exception in a slot fails that job alone.
        """


class StepHandler(Handler[InputT, ItemT, ResultT, OutputT]):
    """A handler that works on all its rows one step at a time; rows join and leave between steps.

    The house never has more than ``max_batch_size`` rows in a handler, calls ``step`` as long as there are rows, and
    takes rows out (``evict``) as soon as their jobs ended, so cancel and deadline need no code in the handler.
    """

    @abc.abstractmethod
    def admit(self, tasks: Sequence[Task[ItemT]]) -> None:
        """Let these rows join. If it raises, these tasks fail and the running rows must be as they were."""

    @abc.abstractmethod
    def step(self) -> Sequence[tuple[Task[ItemT], ResultT | Exception]]:
        """Advance every row by one step and return those that finished, which leave the handler by that.

        If it raises, every row fails and ``reset`` is called.
        """

    @abc.abstractmethod
    def evict(self, tasks: Sequence[Task[ItemT]]) -> None:
        """Take these rows out now; those not there any more are ignored."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Forget all rows and the memory they hold."""
