"""Clips that voices are taken from, at the two sample rates that the model listens to."""

from __future__ import annotations

import importlib
from typing import Any

import attrs

from aiservices.errors import InvalidInput
from aiservices.handlers import audio
from aiservices.handlers.chatterbox.sound import set_loudness
from aiservices.handlers.chatterbox.variants import Variant
from aiservices.handlers.reference_clip import PROMPT_FIELD, Reference

RATE, TOKENIZER_RATE = 24_000, 16_000
"""Samples a second of what S3Gen imitates, and of what its tokenizer and the voice encoder hear."""


@attrs.frozen(eq=False)
class Clip:
    """A clip at the two sample rates that are listened to.

    Attributes:
        at_24k: mono, ``(frames,)``, at 24 kHz.
        at_16k: the same at 16 kHz.
        digest: SHA-256 of the file, in hex.
    """

    at_24k: audio.Samples
    at_16k: audio.Samples
    digest: str


def prepare_clip(reference: Reference, variant: Variant) -> Clip:
    """Resample a checked clip as the library does. CPU-heavy.

    Raises:
        InvalidInput: it is shorter than this variant needs.
    """
    import numpy as np

    librosa: Any = importlib.import_module("librosa")  # untyped, and only in the chatterbox extra

    length_s = len(reference.samples) / reference.sample_rate
    if length_s < variant.min_clip_s:
        needed = f"expected at least {variant.min_clip_s:g} s of speech for this model"
        raise InvalidInput(PROMPT_FIELD, f"{needed}, the clip has {length_s:.2f} s")
    samples = librosa.resample(reference.samples, orig_sr=reference.sample_rate, target_sr=RATE)
    if variant.clip_lufs is not None:
        samples = set_loudness(samples, RATE, variant.clip_lufs)
    low = librosa.resample(samples, orig_sr=RATE, target_sr=TOKENIZER_RATE)
    return Clip(samples.astype(np.float32), low.astype(np.float32), reference.digest)


def hum() -> Clip:
    """Make five seconds of a low hum, for a model to listen to that warms up."""
    import numpy as np

    at_24k, at_16k = (
        (0.5 * np.sin(2 * np.pi * 120 * np.arange(5 * rate) / rate)).astype(np.float32)
        for rate in (RATE, TOKENIZER_RATE)
    )
    return Clip(at_24k, at_16k, "")
