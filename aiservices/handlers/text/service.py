"""What the text-generating services share as handlers: loading, rows, unloading."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from aiservices.errors import Unavailable
from aiservices.estimates import MemoryNeed
from aiservices.handler import InputT, OutputT, StepHandler, Task
from aiservices.handlers.text.checkpoint import Checkpoint, read_checkpoint
from aiservices.handlers.text.engine import TextEngine, generate
from aiservices.handlers.text.generation import Generated, GenerationRequest, fit_new_tokens
from aiservices.handlers.text.known_models import known_model
from aiservices.handlers.text.loading import load_engine, takes_vllm
from aiservices.handlers.text.memory import estimate_memory, read_config
from aiservices.handlers.text.options import GenerationOptions
from aiservices.handlers.torch_runtime import free_memory
from aiservices.options import read_options

if TYPE_CHECKING:
    from aiservices.handlers.text.picture_size import PictureSize


@attrs.frozen(eq=False)
class Loaded:
    """What a handler holds between ``load`` and ``unload``."""

    checkpoint: Checkpoint
    engine: TextEngine


class TextService(StepHandler[InputT, OutputT]):
    """A handler whose rows are decoded by a :class:`~aiservices.handlers.text.engine.TextEngine`."""

    Options: ClassVar[type[GenerationOptions]] = GenerationOptions
    """The class of the service's ``options``."""
    auto_classes: ClassVar[Mapping[str, str]]
    """transformers' Auto class for each ``model_type`` that the service takes."""

    options: GenerationOptions
    _loaded: Loaded | None = None
    _device = "cpu"

    @property
    def loaded(self) -> Loaded:
        """The model and its engine.

        Raises:
            Unavailable: nothing is loaded.
        """
        if self._loaded is None:
            raise Unavailable("the model is not loaded")
        return self._loaded

    @property
    def most_pictures(self) -> int:
        """Pictures of one request, at most."""
        return 1

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        """Load the checkpoint and answer one tiny request, so that the first job finds everything warm.

        Raises:
            ServiceError: the folder holds no such model, or an option is not one; the text says which.
        """
        self._device = device
        self.options = read_options(self.Options, options)
        checkpoint = read_checkpoint(model_dir, self.auto_classes)
        pictures = self.read_picture_size(checkpoint)
        engine = load_engine(checkpoint, device, self.options, pictures, self.most_pictures)
        self._loaded = Loaded(checkpoint, engine)
        self.prepare(self._loaded)
        generate(engine, self.warm_up_requests())
        engine.reset()

    def estimate_memory(
        self, model_dir: Path | None, model: str, device: str, options: Mapping[str, Any], max_batch_size: int
    ) -> MemoryNeed | None:
        """Estimate what the model takes of its device; None for one that is neither here nor known."""
        read = read_options(self.Options, options)
        config = known_model(model) if model_dir is None else read_config(model_dir)
        if config is None:
            return None
        need = estimate_memory(config, device, read, max_batch_size, self.picture_tokens(read))
        reserves = takes_vllm(device, read) and not device.startswith("cpu")
        return attrs.evolve(need, reserved_share=read.memory_share if reserves else 0.0)

    def picture_tokens(self, options: Any) -> int:
        """Say how many tokens the pictures of one prompt take at most."""
        return 0

    def unload(self) -> None:
        """Give the model's memory back."""
        if self._loaded is not None:
            self._loaded.engine.close()
            self._loaded = None
        free_memory(self._device)

    def admit(self, tasks: Sequence[Task[GenerationRequest]]) -> None:
        """Let rows join."""
        self.loaded.engine.admit(tasks)

    def step(self) -> Sequence[tuple[Task[GenerationRequest], Generated | Exception]]:
        """Take the next token of every row."""
        return self.loaded.engine.step()

    def evict(self, tasks: Sequence[Task[GenerationRequest]]) -> None:
        """Take rows out."""
        if self._loaded is not None:
            self._loaded.engine.evict(tasks)

    def reset(self) -> None:
        """Forget all rows."""
        if self._loaded is not None:
            self._loaded.engine.reset()

    def read_picture_size(self, checkpoint: Checkpoint) -> PictureSize | None:
        """Say how large pictures may be; None if the service shows the model none."""
        return None

    def prepare(self, loaded: Loaded) -> None:
        """Make what the service needs beside the engine."""

    @abc.abstractmethod
    def warm_up_requests(self) -> list[GenerationRequest]:
        """Make tiny requests that go through everything a real one goes through."""

    def new_tokens(self, prompt_tokens: int, asked: int | None, field: str) -> int:
        """Decide how many tokens an answer may have.

        Args:
            prompt_tokens: length of the prompt.
            asked: what the caller asked for, if anything.
            field: JSON path of the field that makes the prompt long, for the message.

        Raises:
            InvalidInput: prompt and answer do not fit into the model's window.
        """
        return fit_new_tokens(prompt_tokens, asked, self.options.max_new_tokens, self.loaded.engine.window, field)
