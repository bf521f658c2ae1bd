"""The threads that finish the sound of pieces, beside the model. Imports torch when its threads start.

The model's thread collects what is finished, so that a job leaves it with all its sound and nobody else has to wait.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any

from aiservices.handlers.chatterbox.job import Part, SpeechJob
from aiservices.handlers.torch_runtime import one_core_threads

if TYPE_CHECKING:
    from aiservices.handlers.audio import Samples

WAIT_S = 0.02
"""How long a step with nothing else to do waits for a piece: about as long as one that chooses a token."""


class FinishingPool:
    """Pieces that are being finished. Used on the model's thread only.

    Args:
        threads: how many pieces are worked on at once, each on one core.
    """

    def __init__(self, threads: int) -> None:
        self._threads = one_core_threads(threads, "speech-finish")
        self._pending: dict[Future[Samples], Part] = {}

    def submit(self, part: Part, samples: Samples) -> None:
        """Have a piece finished and streamed.

        Args:
            part: the piece.
            samples: its sound as the model made it, ``(frames,)``.
        """
        self._pending[self._threads.submit(part.job.finish, part, samples)] = part

    def wait(self, also: Collection[Future[Any]] = ()) -> None:
        """Wait until a piece is finished or one of the others is done, :data:`WAIT_S` at most."""
        wait({*self._pending, *also}, WAIT_S, FIRST_COMPLETED)

    def __len__(self) -> int:
        return len(self._pending)

    def collect(self) -> list[tuple[Part, Samples | Exception]]:
        """Take out the pieces that are finished, each with its samples or with what went wrong."""
        finished = [(future, part) for future, part in self._pending.items() if future.done()]
        for future, _ in finished:
            del self._pending[future]
        return [(part, _outcome(future)) for future, part in finished]

    def cancel(self, jobs: Collection[SpeechJob]) -> None:
        """Drop the pieces of these jobs; one that a thread works on is let run and then forgotten."""
        for future in [future for future, part in self._pending.items() if part.job in jobs]:
            del self._pending[future]
            future.cancel()

    def close(self) -> None:
        """End the threads; what they work on is waited for."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()


def _outcome(future: Future[Samples]) -> Samples | Exception:
    try:
        return future.result()
    except Exception as error:
        return error
