"""All jobs on their way through the model: pieces into T3, tokens into S3Gen, sound into the finishing pool.

Imports torch: import it inside ``load``. Everything here runs on the model's thread; S3Gen and the finishing of pieces
have threads of their own, from which this one collects (:mod:`.rendering`, :mod:`.finishing`). What goes wrong with a
piece fails its job and no other; an error of the device goes up to the driver.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiservices.handler import Task
from aiservices.handlers.chatterbox.faults import raise_if_of_device
from aiservices.handlers.chatterbox.finishing import FinishingPool
from aiservices.handlers.chatterbox.flow import SoundRequest
from aiservices.handlers.chatterbox.job import Part, SpeechJob
from aiservices.handlers.chatterbox.pieces import seed_of
from aiservices.handlers.chatterbox.rendering import Renderer
from aiservices.handlers.chatterbox.request import ChatterboxRequest
from aiservices.handlers.chatterbox.sampling import Sampling
from aiservices.handlers.chatterbox.t3 import T3Engine
from aiservices.handlers.chatterbox.t3_rows import Draw, T3Request
from aiservices.handlers.speech import Speech

if TYPE_CHECKING:
    from aiservices.handlers.audio import Samples
    from aiservices.handlers.chatterbox.voices import Voice

RENDER_WAIT_STEPS = 16
"""How long finished tokens wait for others to become sound with them: two thirds of a second of speech."""

_TOKEN_FRAMES = 960  # 40 ms at 24 kHz
_WARM_UP_TOKENS = 3

Ended = tuple[Task[ChatterboxRequest], Speech | Exception]
"""A job that left the engine, and what came of it."""


class SpeechEngine:
    """Speaks the jobs that are there, one step at a time.

    Args:
        t3: text to speech tokens.
        renderer: speech tokens to sound.
        marks: the text's start and end mark; None where the text has none.
        tail: speech tokens put behind each piece.
        max_new_tokens: bound on a piece.
        redraws: how often a piece is drawn again.
        sound_rows: pieces that become sound together.
        finish_threads: of the finishing pool.
    """

    def __init__(
        self,
        t3: T3Engine,
        renderer: Renderer,
        *,
        marks: tuple[int, int] | None,
        tail: Sequence[int],
        max_new_tokens: int,
        redraws: int,
        sound_rows: int,
        finish_threads: int,
    ) -> None:
        self._t3, self._renderer = t3, renderer
        self._marks, self._tail = marks, list(tail)
        self._max_new_tokens, self._redraws, self._sound_rows = max_new_tokens, redraws, sound_rows
        self._jobs: list[SpeechJob] = []
        self._parts: dict[T3Request, Part] = {}
        self._unrendered: list[tuple[Part, Draw]] = []
        self._finishing = FinishingPool(finish_threads)
        self._ended: list[Ended] = []

    def admit(self, tasks: Sequence[Task[ChatterboxRequest]]) -> None:
        """Let jobs join."""
        self._jobs += map(SpeechJob.start, tasks)

    def step(self) -> list[Ended]:
        """Let pieces in, choose a token a piece, have sound made of what is due, collect what is made.

        Returns:
            Jobs whose sound is all finished, or that failed.
        """
        self._take_voices()
        self._let_pieces_in()
        self._choose_tokens()
        if self._render_is_due():
            self._render()
        self._collect_sound()
        if self._has_nothing_to_do():
            self._finishing.wait([] if self._renderer.batch is None else [self._renderer.batch])
            self._collect_sound()
        self._collect_finished()
        ended, self._ended = self._ended, []
        return ended

    def evict(self, tasks: Collection[Task[ChatterboxRequest]]) -> None:
        """Take jobs out; those not there are ignored."""
        gone = {job for job in self._jobs if job.task in tasks}
        self._jobs = [job for job in self._jobs if job not in gone]
        requests = [request for request, part in self._parts.items() if part.job in gone]
        self._t3.leave(requests)
        for request in requests:
            del self._parts[request]
        self._unrendered = [(part, draw) for part, draw in self._unrendered if part.job not in gone]
        self._renderer.cancel(gone)
        self._finishing.cancel(gone)

    def reset(self) -> None:
        """Forget every job."""
        self._renderer.cancel(self._jobs)
        self._finishing.cancel(self._jobs)
        self._jobs, self._parts, self._unrendered, self._ended = [], {}, [], []
        self._t3.reset()

    def close(self) -> None:
        """Forget every job and end all threads; what one of them works on is waited for."""
        self.reset()
        self._renderer.close()
        self._finishing.close()

    def warm_up(self, voice: Voice, text: Sequence[int]) -> Samples:
        """Speak a few tokens, so that kernels are chosen, graphs captured and constants made before somebody waits.

        Args:
            voice: who speaks.
            text: ids without their marks.

        Returns:
            What it sounds like, as the model makes it.
        """
        self._t3.prepare()
        condition = self._t3.embedding.condition(voice.speaker, voice.prompt, 0.5)
        request = T3Request(condition, self._marked(text), 0.5, Sampling(), 0, _WARM_UP_TOKENS)
        for _, error in self._t3.join([request]):
            raise error
        outcomes = [outcome for _ in range(_WARM_UP_TOKENS) for _, outcome in self._t3.step()]
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        draw = next(outcome for outcome in outcomes if isinstance(outcome, Draw))
        tokens = draw.tokens or [0]
        return self._renderer.warm_up(SoundRequest([*tokens, *self._tail], voice.gen, draw.generator))

    def _fail(self, job: SpeechJob, error: Exception) -> None:
        """End a job by an error of its own, unless it has ended."""
        if job in self._jobs:
            self._ended.append((job.task, error))
            self.evict([job.task])

    @contextmanager
    def _for(self, job: SpeechJob) -> Iterator[None]:
        """Do something for a job, which an error in it fails."""
        try:
            yield
        except Exception as error:
            raise_if_of_device(error)
            self._fail(job, error)

    def _take_voices(self) -> None:
        """Embed the voices of the jobs that have just come."""
        for job in [job for job in self._jobs if job.condition is None]:
            asked = job.request
            with self._for(job):
                job.condition = self._t3.embedding.condition(
                    asked.voice.speaker, asked.voice.prompt, asked.exaggeration
                )

    def _let_pieces_in(self) -> None:
        """Fill T3's rows, first those jobs that have fewest there, in the order of their coming."""
        joining: list[T3Request] = []
        while len(self._t3) + len(joining) < self._t3.capacity:
            ready = [job for job in self._jobs if job.next_part is not None]
            if not ready:
                break
            job = min(ready, key=lambda job: job.running)
            part = job.waiting.popleft()
            job.running += 1
            with self._for(job):
                request = self._t3_request(part)
                self._parts[request] = part
                joining.append(request)
        joining = [request for request in joining if request in self._parts]  # a job may have failed on its next piece
        for request, error in self._t3.join(joining):
            if request in self._parts:
                self._fail(self._parts[request].job, error)

    def _t3_request(self, part: Part) -> T3Request:
        asked = part.job.request
        if part.job.condition is None:
            raise RuntimeError("a piece has no voice yet")
        return T3Request(
            condition=part.job.condition,
            text=self._marked(part.piece.ids),
            cfg_weight=asked.cfg_weight,
            sampling=asked.sampling,
            seed=seed_of(asked.seed, part.number, part.attempt),
            max_new_tokens=min(self._max_new_tokens, int(part.piece.bounds[1]) + 1),
        )

    def _marked(self, ids: Sequence[int]) -> list[int]:
        return list(ids) if self._marks is None else [self._marks[0], *ids, self._marks[1]]

    def _choose_tokens(self) -> None:
        """Advance T3's rows."""
        for request, outcome in self._t3.step():
            part = self._parts.pop(request, None)
            if part is None:  # another piece of its job failed in this step
                continue
            part.job.running -= 1
            with self._for(part.job):
                if isinstance(outcome, Exception):
                    raise outcome
                self._judge(part, outcome)

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
                part.job.warn(f"{where} is longer or shorter than its text; another seed may be better")
            part.job.spoken += 1
            self._unrendered.append((part, part.best))
        else:
            part.job.warn(f"{where} was left out: the model made no sound for it")
            part.job.leave_out(part)

    def _render_is_due(self) -> bool:
        """Whether to make sound now instead of waiting for more to make it with."""
        for part, _ in self._unrendered:
            part.waited_steps += 1
        urgent = any(part.urgent or part.waited_steps > RENDER_WAIT_STEPS for part, _ in self._unrendered)
        enough = len(self._unrendered) >= self._sound_rows or not len(self._t3)
        return bool(self._unrendered) and self._renderer.batch is None and (urgent or enough)

    def _render(self) -> None:
        """Have sound made of the pieces that somebody listens for, then of those that have waited longest."""
        self._unrendered.sort(key=lambda waiting: not waiting[0].urgent)
        now, self._unrendered = self._unrendered[: self._sound_rows], self._unrendered[self._sound_rows :]
        requests = [
            (part, SoundRequest([*draw.tokens, *self._tail], part.job.request.voice.gen, draw.generator))
            for part, draw in now
        ]
        self._renderer.start(requests, alone=not len(self._t3))

    def _has_nothing_to_do(self) -> bool:
        """Whether all that is left is done by other threads."""
        if len(self._t3) or any(job.next_part is not None for job in self._jobs):
            return False
        if self._renderer.batch is not None:
            return True
        return not self._unrendered and len(self._finishing) > 0

    def _collect_sound(self) -> None:
        """Hand the pieces that have become sound on."""
        for part, made in self._renderer.collect():
            if part.job not in self._jobs:  # another piece of its job failed in this batch
                continue
            with self._for(part.job):
                if isinstance(made, Exception):
                    raise made
                if not self._tail:  # the last token's sound is noise
                    made = made[: max(len(made) - _TOKEN_FRAMES, _TOKEN_FRAMES)]
                self._finishing.submit(part, made)
                part.job.count_rendered()

    def _collect_finished(self) -> None:
        """Take out the jobs whose last piece is finished, and those of which a piece could not be."""
        for part, outcome in self._finishing.collect():
            if isinstance(outcome, Exception):
                self._fail(part.job, outcome)
            else:
                part.job.sounds[part.number] = outcome
        for job in [job for job in self._jobs if job.done]:
            with self._for(job):
                self._ended.append((job.task, job.result()))
        self._jobs = [job for job in self._jobs if not job.done]
