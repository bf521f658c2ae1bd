"""All jobs on their way through the model: pieces into T3, tokens into S3Gen, sound into the finishing pool.

Imports torch: import it inside ``load``. Everything but :meth:`Utterance.finish` runs on the model's thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Literal

import attrs

from aiservices.errors import JobFailed, ServiceError
from aiservices.handler import Context, Task
from aiservices.handlers.chatterbox.pieces import Piece, seed_of
from aiservices.handlers.chatterbox.s3gen import S3GenEngine, SoundRequest
from aiservices.handlers.chatterbox.sampling import Sampling
from aiservices.handlers.chatterbox.sound import Finish
from aiservices.handlers.chatterbox.t3 import Draw, T3Engine, T3Request
from aiservices.handlers.chatterbox.voices import Clip, Voice, VoiceStore
from aiservices.handlers.speech import SpeechRequest
from aiservices.handlers.speech_encoding import AudioFormat
from aiservices.handlers.torch_runtime import one_core_threads

if TYPE_CHECKING:
    import torch

    from aiservices.handlers.audio import Samples

PATIENCE_STEPS = 16
"""How long finished tokens wait for others to become sound with them: two thirds of a second of speech."""

_TOKEN_FRAMES = 960  # 40 ms at 24 kHz
_MAX_NOTES = 20


@attrs.frozen(eq=False)
class ChatterboxRequest(SpeechRequest):
    """One job, read and cut.

    Args:
        pieces: what to say, at least one.
        voice: name of the voice.
        clip: what the voice is taken from; None for a named voice.
        sampling: how to choose.
        cfg_weight: of the guidance, 0 for none.
        exaggeration: how lively.
        seed: of the job.
        finish: what is done to the sound.
        notes: what the caller has to know already.
    """

    pieces: Sequence[Piece]
    voice: str
    clip: Clip | None
    sampling: Sampling
    cfg_weight: float
    exaggeration: float
    seed: int
    finish: Finish
    notes: Sequence[str]


@attrs.frozen(eq=False)
class Uttered:
    """A job whose pieces are all sound or on their way through the finishing pool."""

    parts: Sequence[Future[Samples]]
    sample_rate: int
    voice: str
    format: AudioFormat
    warnings: Sequence[str]
    to_rate: int | None
    engine: Literal["chatterbox"] = "chatterbox"


@attrs.define(eq=False)
class Part:
    """A piece of a job and what came of it so far."""

    job: Utterance
    number: int
    attempt: int = 0
    best: Draw | None = None
    misfit: float = float("inf")
    waited: int = 0

    @property
    def piece(self) -> Piece:
        """What it says."""
        return self.job.request.pieces[self.number]


@attrs.define(eq=False)
class Utterance:
    """A job between its admission and its end."""

    task: Task[ChatterboxRequest]
    waiting: deque[Part] = attrs.field(factory=deque)
    condition: torch.Tensor | None = None
    voice: Voice | None = None
    running: int = 0
    sounds: dict[int, Future[Samples] | None] = attrs.field(factory=dict)
    notes: list[str] = attrs.field(factory=list)
    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    _unsent: dict[int, Samples | None] = attrs.field(factory=dict)
    _next: int = 0

    @classmethod
    def start(cls, task: Task[ChatterboxRequest]) -> Utterance:
        """Begin a job."""
        job = cls(task, notes=list(task.item.notes))
        job.waiting.extend(Part(job, number) for number in range(len(task.item.pieces)))
        return job

    @property
    def request(self) -> ChatterboxRequest:
        """What was asked."""
        return self.task.item

    @property
    def done(self) -> bool:
        """Whether every piece has become sound or been given up."""
        return len(self.sounds) == len(self.request.pieces)

    @property
    def next_part(self) -> Part | None:
        """The part to speak next. A streamed job's first goes alone, so that it is heard soonest."""
        alone = self.request.input.stream and not self.sounds
        return None if not self.waiting or (alone and self.running) else self.waiting[0]

    def note(self, text: str) -> None:
        """Add to what the caller has to know."""
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(text)

    def finish(self, part: Part, samples: Samples) -> Samples:
        """Finish a piece and stream it in its turn. Runs in the pool."""
        finished = self.request.finish.apply(samples, part.piece.pause_s)
        self.deliver(part.number, finished)
        return finished

    def deliver(self, number: int, samples: Samples | None) -> None:
        """Stream what is complete up to here; None is a piece without sound. Callable from any thread."""
        if not self.request.input.stream:
            return
        with self._lock:
            self._unsent[number] = samples
            while self._next in self._unsent:
                ready = self._unsent.pop(self._next)
                if ready is not None:
                    self._emit(self.task.context, self._next, ready)
                self._next += 1

    def _emit(self, context: Context, number: int, samples: Samples) -> None:
        import numpy as np

        pcm = np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2")
        context.emit(
            {
                "part": number,
                "parts": len(self.request.pieces),
                "text": self.request.pieces[number].text,
                "audio": pcm.tobytes(),
                "media_type": "audio/pcm",
                "sample_rate": self.request.finish.to_rate,
            }
        )


Outcome = tuple[Task[ChatterboxRequest], Uttered | Exception]


class Speaker:
    """Speaks the jobs that are there, one step at a time.

    Args:
        t3: text to speech tokens.
        s3gen: speech tokens to sound.
        voices: who can speak.
        marks: the text's start and end mark; None where the text has none.
        tail: speech tokens put behind each piece.
        max_new_tokens: bound on a piece.
        redraws: how often a piece is drawn again.
        sound_rows: pieces that become sound together.
        finish_threads: of the pool.
    """

    def __init__(
        self,
        t3: T3Engine,
        s3gen: S3GenEngine,
        voices: VoiceStore,
        *,
        marks: tuple[int, int] | None,
        tail: Sequence[int],
        max_new_tokens: int,
        redraws: int,
        sound_rows: int,
        finish_threads: int,
    ) -> None:
        self._t3, self._s3gen, self._voices = t3, s3gen, voices
        self._marks, self._tail = marks, list(tail)
        self._max_new_tokens, self._redraws, self._sound_rows = max_new_tokens, redraws, sound_rows
        self._jobs: list[Utterance] = []
        self._parts: dict[T3Request, Part] = {}
        self._silent: list[tuple[Part, Draw]] = []
        self._pool = one_core_threads(finish_threads, "speech-finish")

    def admit(self, tasks: Sequence[Task[ChatterboxRequest]]) -> None:
        """Let jobs join."""
        self._jobs += map(Utterance.start, tasks)

    def step(self) -> list[Outcome]:
        """Take in at most one voice, let pieces in, choose a token a piece, make sound of what is due."""
        ended = self._take_in_voice()
        self._let_in()
        for request, outcome in self._t3.step():
            part = self._parts.pop(request, None)
            if part is None:  # another piece of its job failed in this step
                continue
            part.job.running -= 1
            if isinstance(outcome, Draw):
                self._judge(part, outcome)
            else:
                ended.append((part.job.task, outcome))
                self.evict([part.job.task])
        if self._is_due():
            self._render()
        return ended + self._finished()

    def evict(self, tasks: Collection[Task[ChatterboxRequest]]) -> None:
        """Take jobs out; those not there are ignored."""
        gone = {job for job in self._jobs if job.task in tasks}
        self._jobs = [job for job in self._jobs if job not in gone]
        requests = [request for request, part in self._parts.items() if part.job in gone]
        self._t3.leave(requests)
        for request in requests:
            del self._parts[request]
        self._silent = [(part, draw) for part, draw in self._silent if part.job not in gone]
        for job in gone:
            for future in job.sounds.values():
                if future is not None:
                    future.cancel()

    def reset(self) -> None:
        """Forget every job."""
        self._jobs, self._parts, self._silent = [], {}, []
        self._t3.reset()

    def close(self) -> None:
        """Forget every job and end the pool's threads."""
        self.reset()
        self._s3gen.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _take_in_voice(self) -> list[Outcome]:
        """Get the voices of the jobs that have none; of those still to be made one a step, for it takes long."""
        for job in list(self._jobs):
            if job.voice is not None:
                continue
            clip = job.request.clip
            long = clip is not None and not self._voices.knows(clip.digest)
            try:
                job.voice = self._voices.named(job.request.voice) if clip is None else self._voices.of_clip(clip)
                job.condition = self._t3.condition(job.voice.speaker, job.voice.prompt, job.request.exaggeration)
            except ServiceError as error:
                self.evict([job.task])
                return [(job.task, error)]
            if long:
                break
        return []

    def _let_in(self) -> None:
        """Fill T3's rows, first those jobs that have fewest there, in the order of their coming."""
        joining: list[T3Request] = []
        while len(self._t3) + len(joining) < self._t3.capacity:
            ready = [job for job in self._jobs if job.condition is not None and job.next_part is not None]
            if not ready:
                break
            job = min(ready, key=lambda job: job.running)
            part = job.waiting.popleft()
            job.running += 1
            request = self._t3_request(part)
            self._parts[request] = part
            joining.append(request)
        self._t3.join(joining)

    def _t3_request(self, part: Part) -> T3Request:
        asked, ids = part.job.request, list(part.piece.ids)
        if part.job.condition is None:
            raise RuntimeError("a piece has no voice yet")
        return T3Request(
            condition=part.job.condition,
            text=ids if self._marks is None else [self._marks[0], *ids, self._marks[1]],
            cfg_weight=asked.cfg_weight,
            sampling=asked.sampling,
            seed=seed_of(asked.seed, part.number, part.attempt),
            max_new_tokens=min(self._max_new_tokens, int(part.piece.bounds[1]) + 1),
        )

    def _judge(self, part: Part, draw: Draw) -> None:
        """Keep the draw if it can be the text; if not, draw again, and at last take the best there was."""
        misfit = part.piece.misfit(len(draw.tokens), ended=draw.ended)
        if part.best is None or misfit < part.misfit:
            part.best, part.misfit = draw, misfit
        if part.misfit > 0 and part.attempt < self._redraws:
            part.attempt += 1
            part.job.waiting.appendleft(part)
            return
        where = f"part {part.number + 1} of {len(part.job.request.pieces)}"
        if part.best.tokens:
            if part.misfit > 0:
                part.job.note(f"{where} is longer or shorter than its text; another seed may be better")
            self._silent.append((part, part.best))
        else:
            part.job.note(f"{where} was left out: the model made no sound for it")
            part.job.sounds[part.number] = None
            part.job.deliver(part.number, None)

    def _is_due(self) -> bool:
        """Whether to make sound now instead of waiting for more to make it with."""
        for part, _ in self._silent:
            part.waited += 1
        urgent = any(
            part.waited > PATIENCE_STEPS or (part.job.request.input.stream and part.number == 0)
            for part, _ in self._silent
        )
        return bool(self._silent) and (urgent or len(self._silent) >= self._sound_rows or not len(self._t3))

    def _render(self) -> None:
        now, self._silent = self._silent[: self._sound_rows], self._silent[self._sound_rows :]
        requests = []
        for part, draw in now:
            if part.job.voice is None:
                raise RuntimeError("a piece has no voice yet")
            requests.append(SoundRequest([*draw.tokens, *self._tail], part.job.voice.gen, draw.generator))
        for (part, _), samples in zip(now, self._s3gen.render(requests), strict=True):
            job = part.job
            if not self._tail:  # the last token's sound is noise
                samples = samples[: max(len(samples) - _TOKEN_FRAMES, _TOKEN_FRAMES)]
            job.sounds[part.number] = self._pool.submit(job.finish, part, samples)
            job.task.context.progress(len(job.sounds) / len(job.request.pieces))

    def _finished(self) -> list[Outcome]:
        done = [job for job in self._jobs if job.done]
        self._jobs = [job for job in self._jobs if not job.done]
        return [(job.task, _outcome(job)) for job in done]


def _outcome(job: Utterance) -> Uttered | Exception:
    sounds = [job.sounds[number] for number in range(len(job.sounds))]
    parts = [sound for sound in sounds if sound is not None]
    if not parts:
        return JobFailed("the model made no sound for the text; another seed or voice may do better")
    asked = job.request
    return Uttered(parts, asked.finish.to_rate, asked.voice, asked.input.format, job.notes, asked.input.sample_rate)
