"""What the author of a service writes: one class.

:class:`BatchHandler` where one call answers a whole batch, :class:`StepHandler` where the answer grows step by step
(text generation) and rows may join and leave between two steps. Both take two type parameters, the classes of input and
output::

    class CountWords(BatchHandler[CountInput, CountOutput]):
        def predict(self, tasks): ...

Every method says which thread it runs on; ``load``, ``predict``, ``admit``, ``step``, ``evict``, ``reset`` and
``unload`` of one handler run on one and the same thread, so a handler needs no locks around its model.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    runtime_checkable,
)

import attrs

from aiservices.context import Context, MediaKind, Task, Unit

if TYPE_CHECKING:
    from msgspec import Meta

__all__ = [
    "FILE_MARK",
    "BatchHandler",
    "Context",
    "Handler",
    "MediaKind",
    "OffersVoices",
    "StepHandler",
    "Task",
    "Unit",
    "VoiceInfo",
    "output_file",
]

InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")

FILE_MARK = "media_type_field"
"""Key in the ``extra`` of a field's :class:`msgspec.Meta` that :func:`output_file` sets."""


def output_file(description: str, *, media_type_field: str = "media_type") -> Meta:
    """Describe a field of an ``Output`` that holds a file as ``bytes``.

    On the wire it is base64, or, if the file went to a bucket, a signed URL: the field ``audio`` becomes ``audio_url``.

    Args:
        description: of the field.
        media_type_field: the field beside it that holds the file's media type, as ``audio/wav``.
    """
    from msgspec import Meta  # here, so that --help need not wait for it

    return Meta(description=description, extra={FILE_MARK: media_type_field})


@attrs.frozen
class VoiceInfo:
    """A voice that a caller may ask for by name.

    Attributes:
        language: two letters, where the voice is bound to one.
    """

    name: str
    description: str = ""
    language: str | None = None


@runtime_checkable
class OffersVoices(Protocol):
    """A handler that speaks: its voices are listed at ``GET .../voices``."""

    def voices_offered(self) -> Sequence[VoiceInfo]:
        """Voices that a caller may name. Runs on the loop, also before ``load``."""


_ATTRIBUTES = {InputT: "Input", OutputT: "Output"}


def _type_arguments(cls: type[Any]) -> dict[Any, Any]:
    """What the bases of a class give for :class:`Handler`'s two parameters, through any generic class between."""
    found: dict[Any, Any] = {}
    for base in getattr(cls, "__orig_bases__", ()):
        origin, given = get_origin(base), get_args(base)
        if not (isinstance(origin, type) and issubclass(origin, Handler)):
            continue
        names = dict(zip(origin.__parameters__, given, strict=True))  # type: ignore[attr-defined]  # set by Generic
        inherited = {InputT: InputT, OutputT: OutputT} if origin is Handler else _type_arguments(origin)
        found.update({parameter: names.get(value, value) for parameter, value in inherited.items()})
    return found


class Handler(abc.ABC, Generic[InputT, OutputT]):
    """What both kinds of handler share. Subclass :class:`BatchHandler` or :class:`StepHandler`.

    The two type parameters are attrs classes whose fields carry types, limits and descriptions as
    ``Annotated[..., msgspec.Meta(...)]``. They give validation, the JSON schema in OpenAPI and the form on the page,
    and stand at :attr:`Input` and :attr:`Output` of a class that names them.
    """

    Input: ClassVar[type[Any]]
    Output: ClassVar[type[Any]]

    Options: ClassVar[type[Any] | None] = None
    """An attrs class for the ``options`` of the service, checked before anything is loaded; None takes any."""

    option_folders: ClassVar[Sequence[str]] = ()
    """Options that name folders: each takes what ``model`` takes, and ``load`` gets the local folder."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for parameter, given in _type_arguments(cls).items():
            if isinstance(given, type):
                setattr(cls, _ATTRIBUTES[parameter], given)

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

    async def preprocess(self, input: InputT, context: Context) -> Any:
        """Turn the input into the task's item, what the model takes.

        Runs on the loop while earlier rows run; heavy parts through ``context.run_in_pool``. Without one of its own, a
        handler's item is its input.
        """
        return input

    def postprocess(self, result: Any) -> OutputT:
        """Shape the output (encode audio, parse text).

        Runs in the pool. Without one of its own, a handler's result is its output.
        """
        output: OutputT = result
        return output

    @abc.abstractmethod
    def admit(self, tasks: Sequence[Task[Any]]) -> None:
        """Let these rows join. If it raises, these tasks fail and the running rows must be as they were."""

    @abc.abstractmethod
    def step(self) -> Sequence[tuple[Task[Any], Any]]:
        """Advance every row by one step and return those that finished, which leave the handler by that.

        If it raises, every row fails and ``reset`` is called.

        Returns:
            Task and result of each; an exception for a result fails that job alone.
        """

    @abc.abstractmethod
    def evict(self, tasks: Sequence[Task[Any]]) -> None:
        """Take these rows out now; those not there any more are ignored."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Forget all rows and the memory they hold."""


class StepHandler(Handler[InputT, OutputT]):
    """A handler that works on all its rows one step at a time; rows join and leave between steps.

    There are never more than ``max_batch_size`` rows in a handler; ``step`` is called as long as there are rows, and
    rows are taken out (``evict``) as soon as their jobs ended, so cancel and time limits need no code in the handler.
    """


class BatchHandler(Handler[InputT, OutputT]):
    """A handler whose ``predict`` answers a whole batch in one call: rows that all finish in one step."""

    _batch: Sequence[Task[Any]] = ()

    @abc.abstractmethod
    def predict(self, tasks: Sequence[Task[Any]]) -> Sequence[Any]:
        """Answer one batch. Runs on the model's thread.

        Returns:
            One result per task in the same order; an exception in a slot fails that job alone.
        """

    def admit(self, tasks: Sequence[Task[Any]]) -> None:
        """Put the rows into the next batch."""
        self._batch = [*self._batch, *tasks]

    def step(self) -> Sequence[tuple[Task[Any], Any]]:
        """Answer the batch."""
        tasks, self._batch = self._batch, ()
        results: object = self.predict(tasks)  # an author's code: what it returns need not be what it promised
        if not isinstance(results, Sequence):
            kind = type(results).__name__
            raise TypeError(f"predict has to return a list with one result for each task, and returned {kind}")
        if len(results) != len(tasks):
            raise TypeError(f"predict returned {len(results)} results for a batch of {len(tasks)}")
        return list(zip(tasks, results, strict=True))

    def evict(self, tasks: Sequence[Task[Any]]) -> None:
        """Take rows out of the batch that has not begun."""
        self._batch = [task for task in self._batch if task not in tasks]

    def reset(self) -> None:
        """Forget the batch."""
        self._batch = ()
