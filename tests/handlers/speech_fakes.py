"""A context without a service, and clips to speak with."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import attrs
import numpy as np
import soundfile  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray

from aiservices.handler import MediaKind, Task, Unit
from aiservices.handlers.reference_clip import read_reference
from aiservices.handlers.speech import SpeechRequest
from aiservices.handlers.speech_contract import TextToSpeechInput, TextToSpeechOutput

T = TypeVar("T")
P = ParamSpec("P")
Samples = NDArray[np.float32]


@attrs.define
class FakeContext:
    """Hands out one clip for every URL and writes down what it is told."""

    clip: bytes = b""
    job_id: str = "job"
    cancel_at: float = 2.0
    fetched: list[tuple[str, str, str]] = attrs.field(factory=list)
    fractions: list[float] = attrs.field(factory=list)
    counted: list[tuple[Unit, float]] = attrs.field(factory=list)

    @property
    def cancelled(self) -> bool:
        """Whether the progress has come to ``cancel_at``."""
        return max(self.fractions, default=0.0) >= self.cancel_at

    def progress(self, fraction: float) -> None:
        self.fractions.append(fraction)

    def wait(self, reason: str | None) -> None:
        raise AssertionError("speech makes room for what it took")

    def emit(self, chunk: Any) -> None:
        raise AssertionError("speech does not stream")

    def count(self, unit: Unit, amount: float) -> None:
        self.counted.append((unit, amount))

    async def fetch(self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None) -> bytes:
        self.fetched.append((url, field, kind))
        return self.clip

    async def run_in_child(
        self, function: Callable[..., tuple[dict[str, Any], bytes]], data: bytes, /, *, field: str, **arguments: Any
    ) -> tuple[dict[str, Any], bytearray]:
        result, body = function(data, field=field, **arguments)
        return result, bytearray(body)

    async def run_in_pool(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(function, *args, **kwargs)


def voice_like(pitch_hz: float, *, seconds: float = 4.0, sample_rate: int = 16_000) -> Samples:
    """A hum with 20 falling harmonics, shape ``(frames,)``, peak 0.5."""
    time_s = np.arange(int(seconds * sample_rate)) / sample_rate
    sound = np.sum([np.sin(2 * np.pi * pitch_hz * number * time_s) / number for number in range(1, 21)], axis=0)
    hum: Samples = (0.5 * sound / np.abs(sound).max()).astype(np.float32)
    return hum


def as_file(samples: NDArray[Any], *, sample_rate: int = 16_000, form: str = "WAV", coding: str = "PCM_16") -> bytes:
    """Encode, shape ``(frames,)`` or ``(frames, channels)``."""
    target = io.BytesIO()
    soundfile.write(target, samples, sample_rate, format=form, subtype=coding)
    return target.getvalue()


def task(
    text: str, clip: bytes | None = None, *, context: FakeContext | None = None, **fields: Any
) -> Task[SpeechRequest]:
    """One request as the model's thread gets it."""
    reference = None if clip is None else read_reference(clip)
    return Task(SpeechRequest(TextToSpeechInput(text=text, **fields), reference), context or FakeContext())


def heard(output: TextToSpeechOutput) -> tuple[Samples, int]:
    """Decode the answer."""
    samples: Samples
    sample_rate: int
    if output.format == "pcm":
        samples = np.frombuffer(output.audio, dtype="<i2").astype(np.float32) / np.float32(32768)
        return samples, output.sample_rate
    samples, sample_rate = soundfile.read(io.BytesIO(output.audio), dtype="float32")
    return samples, sample_rate


def rms(samples: Samples) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(samples))))
