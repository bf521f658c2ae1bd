"""Ways to speak with a Chatterbox handler as the model's thread does, and to look at what comes out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiservices.handler import Task
from aiservices.handlers.chatterbox import ChatterboxTextToSpeech
from aiservices.handlers.chatterbox.request import ChatterboxRequest
from aiservices.handlers.speech_contract import TextToSpeechInput, TextToSpeechOutput
from tests.handlers.speech_fakes import FakeContext, Samples, as_file, heard, voice_like

NEEDS_CHATTERBOX = [
    pytest.mark.skipif(
        find_spec("chatterbox") is None, reason="the chatterbox extra is not installed: scripts/install chatterbox"
    ),
    pytest.mark.chatterbox,
    # What chatterbox-tts 0.1.7 calls and torch and its friends have deprecated since.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
"""Marks of a module that runs the model."""

SENTENCE = "Hello there, this is a test."
LONG = " ".join(f"This is sentence number {number}, and it goes on for a while." for number in range(16))
"""Four pieces of 300 characters."""
LOW, HIGH = as_file(voice_like(110, seconds=5.2)), as_file(voice_like(260, seconds=5.2))
PLAIN = {"watermark": False, "loudness_lufs": None}
"""What the model makes, untouched but for its edges."""


def loaded(checkpoint: Path, options: Mapping[str, Any] | None = None) -> ChatterboxTextToSpeech:
    handler = ChatterboxTextToSpeech()
    handler.load(checkpoint, "cpu", {"cpu_threads": 1, **(options or {})})
    return handler


class Listener(FakeContext):
    """Takes a stream too."""

    def __init__(self, clip: bytes = b"") -> None:
        super().__init__(clip)
        self.chunks: list[Any] = []

    def emit(self, chunk: Any) -> None:
        self.chunks.append(chunk)


def job(
    handler: ChatterboxTextToSpeech,
    text: str = SENTENCE,
    clip: bytes | None = None,
    *,
    context: FakeContext | None = None,
    **fields: Any,
) -> Task[ChatterboxRequest]:
    """One request as the model's thread gets it."""
    context = context or Listener()
    if clip is not None:
        context.clip, fields["audio_prompt_url"] = clip, "https://host/a.wav"
    asked = TextToSpeechInput(text=text, **{"seed": 1, **fields})
    handler.validate(asked)
    return Task(asyncio.run(handler.preprocess(asked, context)), context)


def speak(handler: ChatterboxTextToSpeech, jobs: Sequence[Task[ChatterboxRequest]]) -> list[TextToSpeechOutput]:
    """Speak these together."""
    results = dict[Task[ChatterboxRequest], Any]()
    handler.admit(jobs)
    for _ in range(20_000):
        results.update(handler.step())
        if len(results) == len(jobs):
            break
    for result in results.values():
        if isinstance(result, Exception):
            handler.evict(jobs)
            raise result
    return [handler.postprocess(results[one]) for one in jobs]


def step_for_ever(handler: ChatterboxTextToSpeech) -> None:
    """Step until it raises."""
    while True:
        handler.step()


def say(handler: ChatterboxTextToSpeech, *given: Any, **fields: Any) -> TextToSpeechOutput:
    (output,) = speak(handler, [job(handler, *given, **fields)])
    return output


def samples_of(output: TextToSpeechOutput) -> Samples:
    return heard(output)[0]


def same(one: TextToSpeechOutput, other: TextToSpeechOutput) -> bool:
    """Whether they differ by no more than rounding: an added row changes the order of sums."""
    ours, theirs = samples_of(one), samples_of(other)
    return len(ours) == len(theirs) and float(np.abs(ours - theirs).max()) < 1e-4


def gaps(samples: Samples, at_least_s: float) -> list[tuple[int, int]]:
    """Where there is silence."""
    silent = np.flatnonzero(samples == 0)
    runs = np.split(silent, np.flatnonzero(np.diff(silent) > 1) + 1)
    return [(int(run[0]), int(run[-1])) for run in runs if len(run) >= at_least_s * 24_000]


def jump_at(pauses: Sequence[tuple[int, int]], samples: Samples) -> float:
    """The largest jump within 10 ms of the pauses, as a share of the largest elsewhere."""
    jumps = np.abs(np.diff(samples))
    inside = np.ones(len(jumps), dtype=bool)
    for begin, end in pauses:
        inside[begin - 240 : end + 240] = False
    at_joints = max(float(jumps[begin - 240 : end + 240].max()) for begin, end in pauses)
    return at_joints / float(jumps[inside].max())
