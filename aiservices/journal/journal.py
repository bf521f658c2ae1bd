"""The journal as the event loop sees it, and the thread that writes it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from aiservices.errors import ConfigError, Unavailable
from aiservices.journal.encryption import KEY_VARIABLE, SecretBox
from aiservices.journal.events import Accepted, Event
from aiservices.journal.records import JobRecord
from aiservices.journal.store import Store
from aiservices.journal.writer import RETRY_S, Writer
from aiservices.logs import get_logger

log = get_logger(__name__)


def _ignore(*_: object) -> None:
    return None


class Journal:
    """What survives the process. Everything but the writing happens on the event loop, and nothing there waits.

    Args:
        path: the file.
        sync: ``normal`` survives the end of the process, ``full`` the loss of power too.
        secret_key: 32 bytes as base64, that secrets of requests are encrypted with; None keeps none.
        on_refused: told, on the loop, the ids of jobs whose acceptance could not be written, and the reason; before
            those who wait for the acceptance wake.
        on_commit: told, on the loop, of each commit: seconds, bytes of the file.

    Attributes:
        failing: why nothing can be written now; None while all is well.

    Raises:
        ConfigError: the key has another form.
    """

    def __init__(
        self,
        path: Path,
        *,
        sync: Literal["normal", "full"] = "normal",
        secret_key: str | None = None,
        on_refused: Callable[[Sequence[str], str], None] = _ignore,
        on_commit: Callable[[float, int], None] = _ignore,
    ) -> None:
        self.path = path
        self.on_refused = on_refused
        self.on_commit = on_commit
        self.failing: str | None = None
        self._sync = sync
        self._box = SecretBox(secret_key) if secret_key is not None else None
        self._round: list[Event] = []
        self._batches: SimpleQueue[Sequence[Event] | None] = SimpleQueue()
        self._written = self._committed = self._failed = self._written_before = 0
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._thread: threading.Thread | None = None
        self._is_broken = False

    @property
    def keeps_secrets(self) -> bool:
        """Whether there is a key that secrets can be encrypted with."""
        return self._box is not None

    @property
    def pending(self) -> int:
        """How many events are not on the disk yet."""
        return self._written - self._committed

    async def open(self) -> list[JobRecord]:
        """Open the file, start the writer and return what is remembered, in the order of acceptance.

        Raises:
            ServiceError: it is in use, damaged, another program's, or newer than this program.
            OSError: the folder or the file cannot be made or read.
        """
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[list[JobRecord]] = loop.create_future()
        writer = Writer(
            lambda: Store(self.path, self._sync, self._box),
            self._batches,
            loop,
            opened,
            self._has_committed,
            self._has_failed,
            self._has_broken,
        )
        self._thread = threading.Thread(target=writer.run, name="journal", daemon=True)
        self._thread.start()
        return await opened

    def write(self, event: Event) -> int:
        """Have an event written soon and return its position.

        Raises:
            Unavailable: an acceptance, while nothing can be written.
            ConfigError: an acceptance with a secret, without a key.
        """
        if isinstance(event, Accepted):
            if self.failing is not None:
                raise Unavailable(self.failing, RETRY_S)
            if event.secret is not None and self._box is None:
                raise ConfigError(f"secrets are kept with {KEY_VARIABLE} only")
        self._written += 1
        if not self._round:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._round.append(event)
        return self._written

    def when_committed(self, position: int, call: Callable[[], None]) -> None:
        """Make a call once everything up to there is on the disk, or as soon as the journal fails; now if it is so."""
        if self._is_settled(position):
            call()
        else:
            self._waiting.append((position, call))

    async def committed(self, position: int) -> bool:
        """Wait until everything up to that position is on the disk.

        Returns:
            Whether it is; False as soon as the journal fails: then memory alone holds it, or it was refused.
        """
        if self._is_settled(position):
            return position <= self._committed
        settled: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def settle() -> None:
            if not settled.done():
                settled.set_result(self.failing is None)

        self._waiting.append((position, settle))
        return await settled

    async def close(self) -> None:
        """Write what is pending, with one try, and free the file."""
        if self._thread is not None:
            self._hand_over()
            self._batches.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
            await asyncio.sleep(0)  # what the writer told last

    def _hand_over(self) -> None:
        """Give the writer what one round of the loop wrote: one commit for all requests that it served."""
        if self._round and not self._is_broken:
            self._batches.put(self._round)
        self._round = []

    def _has_committed(self, position: int, seconds: float, file_bytes: int) -> None:
        if self.failing is not None:
            log.info("journal.recovered")
        self.failing = None
        self._committed = position
        self.on_commit(seconds, file_bytes)
        self._wake(position)

    def _has_failed(self, position: int, refused: Sequence[str], reason: str) -> None:
        if self.failing is None:
            log.error("journal.failing", reason=reason, path=str(self.path))
            self._written_before = self._written
        self.failing, self._failed = reason, position
        if refused:
            self.on_refused(refused, reason)
        self._wake(position)

    def _has_broken(self, refused: Sequence[str], reason: str) -> None:
        """Keep nothing more: a new process has to. What is accepted goes on in memory."""
        self._is_broken = True
        self._has_failed(self._written, refused, reason)

    def _is_settled(self, position: int) -> bool:
        """Whether nobody has to wait for a position: it is on the disk, or was tried and failed.

        What is written while the journal fails need not be tried: there are no acceptances in it.
        """
        if self.failing is None:
            return position <= self._committed
        return position <= self._failed or position > self._written_before

    def _wake(self, position: int) -> None:
        waiting = self._waiting
        self._waiting = deque(entry for entry in waiting if entry[0] > position)
        for at, call in waiting:
            if at <= position:
                try:
                    call()
                except Exception as error:  # one that raises must not take those behind it along
                    log.error("journal.call_failed", exc_info=error)
