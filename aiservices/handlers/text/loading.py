"""Choose the engine for a checkpoint and load it."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from aiservices.errors import ServiceError
from aiservices.handlers.text.checkpoint import Checkpoint
from aiservices.handlers.text.engine import TextEngine
from aiservices.handlers.text.options import GenerationOptions
from aiservices.handlers.text.picture_size import PictureSize
from aiservices.handlers.torch_runtime import import_lock

_log = logging.getLogger(__name__)


def load_engine(
    checkpoint: Checkpoint,
    device: str,
    options: GenerationOptions,
    pictures: PictureSize | None = None,
    max_pictures: int = 1,
) -> TextEngine:
    """Load the weights into the engine that ``options.engine`` names. Runs on the model's thread.

    ``auto`` takes vLLM on a GPU where it is installed and can run the checkpoint, and otherwise the engine that comes
    with the package.

    Args:
        checkpoint: whose weights.
        device: where they go.
        options: which engine, and how it runs.
        pictures: how large pictures may be; None if there will be none.
        max_pictures: most pictures of one prompt.

    Raises:
        ServiceError: the engine cannot run the checkpoint, or is not installed; the text says why.
    """
    if options.engine == "vllm" and not _is_installed():
        raise ServiceError("options.engine is vllm, which is not installed: pip install 'aiservices[vllm]'")
    if takes_vllm(device, options):
        try:
            return _load_vllm(checkpoint, device, options, pictures, max_pictures)
        except ServiceError as error:
            if options.engine == "vllm":
                raise
            _log.warning("%s; going on with the engine of the package", error)
    return _load_own(checkpoint, device, options, pictures)


def takes_vllm(device: str, options: GenerationOptions) -> bool:
    """Tell whether vLLM is to run a model, as far as the options and what is installed say."""
    return options.engine == "vllm" or (options.engine == "auto" and device.startswith("cuda") and _is_installed())


def _is_installed() -> bool:
    return find_spec("vllm") is not None


def _load_vllm(
    checkpoint: Checkpoint, device: str, options: GenerationOptions, pictures: PictureSize | None, max_pictures: int
) -> TextEngine:
    from aiservices.handlers.text.vllm.loading import load_engine

    engine: TextEngine = load_engine(checkpoint, device, options, pictures, max_pictures)
    return engine


def _load_own(
    checkpoint: Checkpoint, device: str, options: GenerationOptions, pictures: PictureSize | None
) -> TextEngine:
    with import_lock:
        from aiservices.handlers.text.own.loading import load_engine
    return load_engine(checkpoint, device, options, pictures)
