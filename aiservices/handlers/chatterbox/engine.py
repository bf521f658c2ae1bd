"""All jobs on their way through the model: pieces into T3, tokens into S3Gen, sound into the finishing pool.

Imports torch: import it inside ``load``. Everything here runs on the model's thread.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from aiservices.errors import ServiceError
from aiservices.handler import Task
from aiservices.handlers.chatterbox.finishing import FinishingPool
from aiservices.handlers.chatterbox.job import Part, SpeechJob
from aiservices.handlers.chatterbox.pieces import seed_of
from aiservices.handlers.chatterbox.request import ChatterboxRequest
from aiservices.handlers.chatterbox.flow import SoundRequest
from aiservices.handlers.chatterbox.s3gen import S3GenEngine
from aiservices.handlers.chatterbox.t3 import T3Engine
from aiservices.handlers.chatterbox.t3_rows import Draw, T3Request
from aiservices.handlers.chatterbox.voices import VoiceStore
from aiservices.handlers.speech import Speech

RENDER_WAIT_STEPS = 16
"""How long finished tokens wait for others to become sound with them: two thirds of a second of speech."""

_TOKEN_FRAMES = 960  # 40 ms at 24 kHz

Ended = tuple[Task[ChatterboxRequest], Speech | Exception]
"""A job that left the engine, and what came of it."""


class SpeechEngine:
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
        finish_threads: of the finishing pool.
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
        self._jobs: list[SpeechJob] = []
        self._parts: dict[T3Request, Part] = {}
        self._unrendered: list[tuple[Part, Draw]] = []
        self._finishing = FinishingPool(finish_threads)

    def admit(self, tasks: Sequence[Task[ChatterboxRequest]]) -> None:
        """Let jobs join."""
        self._jobs += map(SpeechJob.start, tasks)

    def step(self) -> list[Ended]:
        """Make at most one voice, let pieces in, choose a token a piece, make sound of what is due.

        Returns:
            Jobs whose sound is all finished, or that failed.
        """
        ended = self._make_voices()
        self._let_pieces_in()
        ended += self._choose_tokens()
        if self._render_is_due():
            self._render()
        if self._jobs and all(job.all_rendered and not job.done for job in self._jobs):
            self._finishing.wait()
        return ended + self._finished()

    def evict(self, tasks: Collection[Task[ChatterboxRequest]]) -> None:
        """Take jobs out; those not there are ignored."""
        gone = {job for job in self._jobs if job.task in tasks}
        self._jobs = [job for job in self._jobs if job not in gone]
        requests = [request for request, part in self._parts.items() if part.job in gone]
        self._t3.leave(requests)
        for request in requests:
            del self._parts[request]
        self._unrendered = [(part, draw) for part, draw in self._unrendered if part.job not in gone]
        self._finishing.cancel(gone)

    def reset(self) -> None:
        """Forget every job."""
        self._finishing.cancel(self._jobs)
        self._jobs, self._parts, self._unrendered = [], {}, []
        self._t3.reset()

    def close(self) -> None:
        """Forget every job and end all threads; a piece that one of them finishes is waited for."""
        self.reset()
        self._s3gen.close()
        self._finishing.close()

    def _make_voices(self) -> list[Ended]:
        """Get the voices of the jobs that have none; of those still to be made one a step, for it takes long."""
        for job in list(self._jobs):
            if job.voice is not None:
                continue
            clip = job.request.clip
            slow = clip is not None and not self._voices.knows(clip.digest)
            try:
                job.voice = self._voices.named(job.request.voice) if clip is None else self._voices.of_clip(clip)
                job.condition = self._t3.embedding.condition(
                    job.voice.speaker, job.voice.prompt, job.request.exaggeration
                )
            except ServiceError as error:
                self.evict([job.task])
                return [(job.task, error)]
            if slow:
                break
        return []

    def _let_pieces_in(self) -> None:
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

    def _choose_tokens(self) -> list[Ended]:
        """Advance T3's rows; return the jobs that failed by that."""
        failed: list[Ended] = []
        for request, outcome in self._t3.step():
            part = self._parts.pop(request, None)
            if part is None:  # another piece of its job failed in this step
                continue
            part.job.running -= 1
            if isinstance(outcome, Draw):
                self._judge(part, outcome)
            else:
                failed.append((part.job.task, outcome))
                self.evict([part.job.task])
        return failed

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
        return bool(self._unrendered) and (urgent or enough)

    def _render(self) -> None:
        """Make sound of the pieces that have waited longest, and have it finished."""
        now, self._unrendered = self._unrendered[: self._sound_rows], self._unrendered[self._sound_rows :]
        requests = []
        for part, draw in now:
            if part.job.voice is None:
                raise RuntimeError("a piece has no voice yet")
            requests.append(SoundRequest([*draw.tokens, *self._tail], part.job.voice.gen, draw.generator))
        for (part, _), samples in zip(now, self._s3gen.render(requests), strict=True):
            if not self._tail:  # the last token's sound is noise
                samples = samples[: max(len(samples) - _TOKEN_FRAMES, _TOKEN_FRAMES)]
            self._finishing.submit(part, samples)
            part.job.count_rendered()

    def _finished(self) -> list[Ended]:
        """Take out the jobs whose last piece is finished, and those of which a piece could not be."""
        failed: dict[SpeechJob, Exception] = {}
        for part, outcome in self._finishing.collect():
            if isinstance(outcome, Exception):
                failed.setdefault(part.job, outcome)
            else:
                part.job.sounds[part.number] = outcome
        self.evict([job.task for job in failed])
        done = [job for job in self._jobs if job.done]
        self._jobs = [job for job in self._jobs if not job.done]
        return [*((job.task, error) for job, error in failed.items()), *((job.task, job.result()) for job in done)]
