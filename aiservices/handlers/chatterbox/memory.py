"""What Chatterbox takes of its device, by which variant it is: no torch, no weights read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from aiservices.estimates import MemoryNeed
from aiservices.handlers.chatterbox.options import ChatterboxOptions
from aiservices.handlers.chatterbox.variants import find_variant

_GIB = 2**30
_SOUND_PARAMETERS = 265e6
"""S3Gen and the voice encoder, always in float32."""
_CONDITIONS = 450
"""Rows before the speech tokens: the voice, up to 375 of its tokens, and a sentence."""
_SOUND_GIB = 0.1
"""Of each piece that becomes sound: 40 s of it and as much of the voice, through the flow's two passes."""
_VOCODER_GIB = 1.0
"""One piece of 40 s at a time."""
_WORK_GIB = 0.5
"""What the libraries of a GPU take as work space, and what torch's allocator holds in reserve."""


@attrs.frozen
class _Speaker:
    """A language model of speech: how large it is.

    Attributes:
        parameters: as the library's class counts them, without what is dropped at load.
        states: numbers that the keys and values of one token are.
        passes: rows that one piece takes, two where it is guided.
    """

    parameters: float
    states: int
    passes: int


_SPEAKERS: Mapping[str, _Speaker] = {
    "english": _Speaker(532e6, 2 * 30 * 1024, 2),
    "multilingual": _Speaker(536e6, 2 * 30 * 1024, 2),
    "turbo": _Speaker(427e6, 2 * 24 * 1024, 1),
    "nano": _Speaker(179e6, 2 * 12 * 768, 1),
}


def estimate_memory(model_dir: Path | None, model: str, device: str, options: ChatterboxOptions) -> MemoryNeed | None:
    """Estimate what a service takes at most.

    Args:
        model_dir: the checkpoint; None while it is not here.
        model: the setting, by which a released one is known until then.
        device: where it will be.
        options: of the service.

    Returns:
        None for a model that is neither here nor known.

    Raises:
        ServiceError: the folder holds none, or not the variant that is asked for.
    """
    name = _released(model, options.variant) if model_dir is None else find_variant(model_dir, options.variant).name
    if name is None:
        return None
    speaker = _SPEAKERS[name]
    on_gpu = not device.startswith("cpu")
    width = 2 if options.dtype == "bfloat16" or (options.dtype == "auto" and on_gpu) else 4
    tokens = options.rows * speaker.passes * (_CONDITIONS + options.max_new_tokens)
    return MemoryNeed(
        weights_gib=(speaker.parameters * width + _SOUND_PARAMETERS * 4) / _GIB,
        cache_gib=tokens * speaker.states * width / _GIB,
        activations_gib=options.sound_rows * _SOUND_GIB + _VOCODER_GIB + (_WORK_GIB if on_gpu else 0),
    )


def _released(model: str, wanted: str) -> str | None:
    uri, _, files = model.lower().partition("?")
    repository = uri.removeprefix("hf://").partition("@")[0]
    if not repository.startswith("resembleai/chatterbox"):
        return None
    if wanted != "auto":
        return wanted
    named = repository.removeprefix("resembleai/chatterbox").removeprefix("-")
    if named in _SPEAKERS:
        return named
    return "multilingual" if "t3_mtl" in files else "english"
