"""The thread on which speech tokens become sound, beside T3 on the model's. Imports torch: import it inside ``load``.

What it needs of the model is S3Gen, which nobody else runs, and of a piece tokens, voice and generator, which T3 has
done with. It takes one batch after the other; meanwhile the pieces that come gather for the next. An error of one piece
comes back in its place; one of the device is raised where the model's thread collects, as if it had happened there.
Closing waits for the batch under way.

A CPU with a single core has nothing to gain by a second thread: there the batch is made where it is handed over.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from aiservices.handlers.chatterbox.flow import SoundRequest
from aiservices.handlers.chatterbox.job import Part, SpeechJob
from aiservices.handlers.chatterbox.s3gen import S3GenEngine

if TYPE_CHECKING:
    from aiservices.handlers.audio import Samples


class Renderer:
    """The batch of pieces that is becoming sound. Used on the model's thread only.

    Args:
        s3gen: makes the sound.
        beside: whether on a thread of its own.
    """

    def __init__(self, s3gen: S3GenEngine, *, beside: bool) -> None:
        self._s3gen = s3gen
        self._thread = _thread(torch.get_num_threads()) if beside else None
        self._parts: list[Part | None] = []
        self._batch: Future[list[Samples | Exception]] | None = None

    @property
    def batch(self) -> Future[list[Samples | Exception]] | None:
        """What is under way; None if the next batch may be started."""
        return self._batch

    def start(self, parts: Sequence[tuple[Part, SoundRequest]], *, alone: bool) -> None:
        """Make sound of pieces; only when none are under way.

        Args:
            parts: with what S3Gen is asked.
            alone: whether T3 has nothing to do meanwhile.
        """
        self._parts = [part for part, _ in parts]
        requests = [request for _, request in parts]
        if self._thread is not None:
            self._batch = self._thread.submit(self._s3gen.render, requests, alone=alone)
            return
        self._batch = Future()
        try:
            self._batch.set_result(self._s3gen.render(requests, alone=alone))
        except Exception as error:
            self._batch.set_exception(error)

    def collect(self) -> list[tuple[Part, Samples | Exception]]:
        """Take out the batch if it is made: each piece with its samples or with what went wrong.

        Raises:
            Exception: the device failed, and the whole batch with it.
        """
        if self._batch is None or not self._batch.done():
            return []
        batch, parts = self._batch, self._parts
        self._batch, self._parts = None, []
        if not any(parts):  # nobody is left whom an error would concern
            return []
        made = zip(parts, batch.result(), strict=True)
        return [(part, sound) for part, sound in made if part is not None]

    def warm_up(self, request: SoundRequest) -> Samples:
        """Make sound of one piece on the thread that will do so, and wait for it."""
        render = self._s3gen.render
        (made,) = render([request]) if self._thread is None else self._thread.submit(render, [request]).result()
        if isinstance(made, Exception):
            raise made
        return made

    def cancel(self, jobs: Collection[SpeechJob]) -> None:
        """Forget the pieces of these jobs; their sound is made and dropped."""
        self._parts = [None if part is None or part.job in jobs else part for part in self._parts]

    def close(self) -> None:
        """End the threads; the batch under way is waited for."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._batch, self._parts = None, []
        self._s3gen.close()


def _thread(cores: int) -> ThreadPoolExecutor:
    def begin() -> None:
        torch.get_num_threads()  # or torch would set the thread up later, with what was said last by any thread
        torch.set_num_threads(cores)

    return ThreadPoolExecutor(1, "speech-render", initializer=begin)
