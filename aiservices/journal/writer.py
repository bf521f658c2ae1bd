"""The thread that writes: it takes what has come, commits it at once, and wakes the loop.

No pause between two commits: measured, one of 2 ms saved a tenth of the CPU and cost each answer 2 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from aiservices.journal.changes import Change, collapse
from aiservices.journal.events import Event
from aiservices.journal.records import JobRecord
from aiservices.journal.store import Store
from aiservices.logs import get_logger

RETRY_S = 1.0
"""Time between two tries to write while the disk refuses."""

IDLE_S = 1.0
"""After this long without an event the WAL is folded in and free pages are given back."""

MAX_EVENTS = 10_000
"""After so many events a commit takes no more, so that an answer never waits for an endless one."""

log = get_logger(__name__)


class Writer:
    """The one thread that touches the file.

    Args:
        make: opens the file.
        batches: what to write; None closes.
        loop: where the rest is called.
        opened: gets what is remembered, or why the file cannot be used.
        committed: told the position, the seconds and the file's bytes of a commit.
        failed: told the position, the refused acceptances and the reason of a commit that failed.
        broken: told the refused acceptances and the reason when it stops before it was told to.
    """

    def __init__(
        self,
        make: Callable[[], Store],
        batches: SimpleQueue[Sequence[Event] | None],
        loop: asyncio.AbstractEventLoop,
        opened: asyncio.Future[list[JobRecord]],
        committed: Callable[[int, float, int], None],
        failed: Callable[[int, Sequence[str], str], None],
        broken: Callable[[Sequence[str], str], None],
    ) -> None:
        self._make, self._batches, self._loop, self._opened = make, batches, loop, opened
        self._committed, self._failed, self._broken = committed, failed, broken
        self._changes: dict[str, Change] = {}
        self._taken = 0
        self._closing = self._failing = False
        self._is_tidy = True

    def run(self) -> None:
        """Open, write until told to close, close."""
        try:
            self._store = self._make()
            try:
                records = self._store.read()
            except BaseException:
                self._store.close()
                raise
        except BaseException as error:
            self._post(self._settle_open, None, error)
            return
        self._post(self._settle_open, records, None)
        del records
        try:
            while not self._closing:
                if self._failing:
                    self._take_while_failing()
                    self._commit()
                elif self._take():
                    self._commit()
            if self._changes:
                log.error("journal.lost", jobs=len(self._changes))
        except Exception as error:
            log.critical("journal.broken", exc_info=error)
            self._post(self._broken, self._acceptances(), "the journal stopped working: internal error")
        finally:
            self._store.close()

    def _take(self) -> bool:
        """Wait for events and take those there are.

        Returns:
            Whether there is something to commit.
        """
        try:
            first = self._batches.get(timeout=IDLE_S)
        except Empty:
            self._tidy()
            return False
        self._drain(first)
        return True

    def _take_while_failing(self) -> None:
        """Let events gather, collapsed so that a job costs one change, until the next try."""
        deadline = time.monotonic() + RETRY_S
        while not self._closing and (left := deadline - time.monotonic()) > 0:
            try:
                self._drain(self._batches.get(timeout=left))
            except Empty:
                return

    def _drain(self, batch: Sequence[Event] | None) -> None:
        taken_before = self._taken
        try:
            while batch is not None:
                collapse(self._changes, batch)
                self._taken += len(batch)
                if self._taken - taken_before >= MAX_EVENTS:
                    return
                batch = self._batches.get_nowait()
        except Empty:
            return
        self._closing = True

    def _commit(self) -> None:
        begun = time.perf_counter()
        try:
            self._store.commit(self._changes)
        except Exception as error:
            self._failing = True
            refused = self._acceptances()
            for job_id in refused:
                del self._changes[job_id]
            reason = f"the journal cannot be written: {error}"
            self._post(self._failed, self._taken, refused, reason)
        else:
            self._failing, self._is_tidy = False, False
            self._changes.clear()
            seconds, size = time.perf_counter() - begun, self._store.size_bytes()
            self._post(self._committed, self._taken, seconds, size)

    def _acceptances(self) -> list[str]:
        """Ids of the jobs whose acceptance is not written."""
        return [job_id for job_id, change in self._changes.items() if change.accepted is not None]

    def _tidy(self) -> None:
        if not self._is_tidy:
            self._is_tidy = True
            with contextlib.suppress(sqlite3.Error):  # the disk is full: the next commit says so
                self._store.tidy()

    def _post(self, call: Callable[..., None], *values: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            self._loop.call_soon_threadsafe(call, *values)

    def _settle_open(self, records: list[JobRecord] | None, error: BaseException | None) -> None:
        if self._opened.cancelled():
            return
        if error is not None:
            self._opened.set_exception(error)
        else:
            assert records is not None
            self._opened.set_result(records)
