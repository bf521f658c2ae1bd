"""The queue that callers put records in without waiting, and the thread that writes them."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from aiservices.logs.lines import Record, Render, render

Write = Callable[[bytes], object]

MAX_WAITING_RECORDS = 10_000
"""Records that may wait to be written; what finds no room is dropped and counted (``log.dropped``)."""

BATCH_RECORDS = 500
"""So many waiting records wake the writer, and at most so many are written in one call: as JSON, 1 ms of the GIL."""

FLUSH_INTERVAL_S = 0.1
"""How long a line below warning may wait for others to be written with."""

CLOSE_TIMEOUT_S = 2.0
"""How long the process's end waits for a reader that takes no more lines."""


class LogWriter:
    """The queue of records and the thread that writes them. Its methods but ``start`` and ``close`` never wait.

    Signal handlers and finalizers may log while their thread is in the middle of a ``put``: nothing here may hold a
    lock that the same thread cannot take again.
    """

    def __init__(self) -> None:
        self._records: deque[Record] = deque()
        self._waiting = _Flag()
        self._urgent = _Flag()
        self._dropped = 0
        self._dropped_lock = threading.RLock()
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self, render: Render, write: Write) -> None:
        """Write what comes from now on, and what waits, in this way.

        Args:
            render: makes one line, with its end; ``timestamp`` is a :class:`datetime` in UTC. On the writer's thread.
            write: takes lines; may block, and may raise where they are lost. On the writer's thread.
        """
        self._render, self._write, self._closing = render, write, False
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()

    def put(self, record: Record) -> None:
        """Queue one record, from any thread; fields have ``event``, ``level`` and ``timestamp`` (seconds, Unix)."""
        waiting = len(self._records)
        if waiting >= MAX_WAITING_RECORDS:
            self._drop(1)
            return
        self._records.append(record)
        if waiting >= BATCH_RECORDS and not self._urgent.is_set:
            self._urgent.set()
        if not self._waiting.is_set:
            self._waiting.set()

    def put_urgent(self, record: Record) -> None:
        """Queue one record and have it written at once."""
        self.put(record)
        self._urgent.set()

    # structlog calls the method that has the level's name
    debug = info = put
    warning = error = critical = put_urgent

    def close(self) -> None:
        """Write what waits and end the thread, within ``CLOSE_TIMEOUT_S``."""
        self._closing = True
        self._urgent.set()
        self._waiting.set()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _drop(self, count: int) -> None:
        with self._dropped_lock:
            self._dropped += count

    def _run(self) -> None:
        while self._records or not self._closing:
            self._waiting.wait()
            self._urgent.wait(FLUSH_INTERVAL_S)
            # before the records are taken: one that comes meanwhile sets it anew
            self._waiting.clear()
            self._urgent.clear()
            while self._write_batch():
                pass

    def _write_batch(self) -> bool:
        """A function of its own, so that no exception, with the frames behind it, outlives its line."""
        records = [self._records.popleft() for _ in range(min(len(self._records), BATCH_RECORDS))]
        with self._dropped_lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            event = {"count": dropped, "event": "log.dropped", "level": "warning", "timestamp": time.time()}
            records.append(event)
        if not records:
            return False
        try:
            self._write(b"".join([render(record, self._render) for record in records]))
        except (OSError, ValueError):  # nobody reads, the disk is full, or the stream is closed
            self._drop(len(records) - bool(dropped) + dropped)
        return bool(self._records)


def writing_to(stream: TextIO) -> Write:
    """Return what writes past the stream's buffer, whose lock the interpreter must not find held when it ends."""
    try:
        descriptor = stream.fileno()
    except OSError:  # a stream in memory
        return lambda data: stream.write(data.decode())
    return lambda data: _write_all(descriptor, data)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # whoever shares the terminal may have made it so
            select.select([], [descriptor], [])


class _Flag:
    """An event for one waiter; unlike :class:`threading.Event` it can be set in the middle of being set."""

    def __init__(self) -> None:
        self.is_set = False
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        if not self.is_set:
            self.is_set = True
            self._calls.put(None)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until it is set; one that was cleared meanwhile may end this too early, and does no harm."""
        with contextlib.suppress(queue.Empty):
            self._calls.get(timeout=timeout_s)

    def clear(self) -> None:
        while not self._calls.empty():
            self._calls.get()
        self.is_set = False  # last: a call that comes before is answered by what the waiter does next
