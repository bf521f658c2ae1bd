"""One job under way: which of its pieces are where, what has become of them, and its stream."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import attrs

from aiservices.errors import JobFailed
from aiservices.handler import Task
from aiservices.handlers.chatterbox.pieces import Piece
from aiservices.handlers.chatterbox.request import ChatterboxRequest
from aiservices.handlers.speech import Speech

if TYPE_CHECKING:
    import torch

    from aiservices.handlers.audio import Samples
    from aiservices.handlers.chatterbox.t3_rows import Draw

_MAX_WARNINGS = 20


@attrs.define(eq=False)
class Part:
    """A piece of a job and what came of it so far.

    Attributes:
        number: of the piece, from 0.
        attempt: how often it was drawn again.
        best: the draw that fits the text best so far.
        misfit: of that draw, see :meth:`.Piece.misfit`.
        waited_steps: how long its tokens have been waiting to become sound.
    """

    job: SpeechJob
    number: int
    attempt: int = 0
    best: Draw | None = None
    misfit: float = float("inf")
    waited_steps: int = 0

    @property
    def piece(self) -> Piece:
        """What it says."""
        return self.job.request.pieces[self.number]

    @property
    def urgent(self) -> bool:
        """Whether somebody listens already and hears nothing yet."""
        return self.job.request.input.stream and self.number == 0


@attrs.define(eq=False)
class SpeechJob:
    """A job between its admission and its end. On the model's thread, but for :meth:`finish` and :meth:`stream`.

    Attributes:
        waiting: pieces that are still to be spoken, in order.
        condition: the voice as T3 takes it; None until the job's first step.
        running: how many pieces have rows in T3.
        spoken: of how many pieces the speech tokens are chosen, or there are none.
        rendered: how many pieces have become sound or were left out.
        sounds: finished samples by number of the piece; None for one that was left out.
        warnings: what the answer will say was not done as asked.
    """

    task: Task[ChatterboxRequest]
    waiting: deque[Part] = attrs.field(factory=deque)
    condition: torch.Tensor | None = None
    running: int = 0
    spoken: int = 0
    rendered: int = 0
    sounds: dict[int, Samples | None] = attrs.field(factory=dict)
    warnings: list[str] = attrs.field(factory=list)
    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    _unsent: dict[int, Samples | None] = attrs.field(factory=dict)
    _next: int = 0

    @classmethod
    def start(cls, task: Task[ChatterboxRequest]) -> SpeechJob:
        """Begin a job: every piece waits."""
        job = cls(task, warnings=list(task.item.warnings))
        job.waiting.extend(Part(job, number) for number in range(len(task.item.pieces)))
        return job

    @property
    def request(self) -> ChatterboxRequest:
        """What was asked."""
        return self.task.item

    @property
    def done(self) -> bool:
        """Whether every piece is finished or was left out."""
        return len(self.sounds) == len(self.request.pieces)

    @property
    def next_part(self) -> Part | None:
        """The part to speak next. A streamed job's first goes alone, so that it is heard soonest."""
        alone = self.request.input.stream and not self.spoken
        return None if not self.waiting or (alone and self.running) else self.waiting[0]

    def warn(self, text: str) -> None:
        """Add to what the caller has to know, up to a bound."""
        if len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(text)

    def count_rendered(self) -> None:
        """Note that one more piece is sound, which is what the job's progress counts."""
        self.rendered += 1
        self.task.context.progress(self.rendered / len(self.request.pieces))

    def leave_out(self, part: Part) -> None:
        """Go on without a piece for which the model made no sound."""
        self.spoken += 1
        self.rendered += 1
        self.sounds[part.number] = None
        self.stream(part.number, None)

    def finish(self, part: Part, samples: Samples) -> Samples:
        """Finish a piece and stream it in its turn. CPU-heavy; runs in the finishing pool."""
        finished = self.request.finish.apply(samples, part.piece.pause_s)
        self.task.context.count("audio_seconds", len(finished) / self.request.finish.to_rate)
        self.stream(part.number, finished)
        return finished

    def stream(self, number: int, samples: Samples | None) -> None:
        """Stream what is complete up to here, if a stream was asked for. Callable from any thread.

        Args:
            number: of a piece.
            samples: its finished sound; None if it was left out.
        """
        if not self.request.input.stream:
            return
        with self._lock:
            self._unsent[number] = samples
            while self._next in self._unsent:
                ready = self._unsent.pop(self._next)
                if ready is not None:
                    self._emit(self._next, ready)
                self._next += 1

    def result(self) -> Speech | Exception:
        """Sum up a job that is done."""
        sounds = [self.sounds[number] for number in range(len(self.sounds))]
        blocks = [sound for sound in sounds if sound is not None]
        if not blocks:
            return JobFailed("the model made no sound for the text; another seed or voice may do better")
        asked = self.request
        return Speech(
            blocks=blocks,
            sample_rate=asked.finish.to_rate,
            voice=asked.voice_name,
            engine="chatterbox",
            format=asked.input.format,
            warnings=self.warnings,
            to_rate=asked.input.sample_rate,
        )

    def _emit(self, number: int, samples: Samples) -> None:
        import numpy as np

        pcm = np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2")
        self.task.context.emit(
            {
                "part": number,
                "parts": len(self.request.pieces),
                "text": self.request.pieces[number].text,
                "audio": pcm.tobytes(),
                "media_type": "audio/pcm",
                "sample_rate": self.request.finish.to_rate,
            }
        )
