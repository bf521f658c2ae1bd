"""How far a download or an upload is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import attrs

REPORT_INTERVAL_S = 0.1
"""The shortest time between two reports of progress."""


@attrs.frozen
class Progress:
    """Files and bytes done so far, what was there already included, and how many there are.

    Attributes:
        elsewhere: another process does the work, and this one waits for it.
    """

    files: int = 0
    files_total: int = 0
    bytes: int = 0
    bytes_total: int = 0
    elsewhere: bool = False

    def __str__(self) -> str:
        done = f"{readable(self.bytes)} of {readable(self.bytes_total)}"
        return f"{done}, by another process" if self.elsewhere else done


OnProgress = Callable[[Progress], None]


class ProgressReporter:
    """Counts what is done, in any thread, and reports it a few times a second.

    Args:
        on_progress: gets each report, in the thread that counted; must not block.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._start = Progress()
        self._files = self._bytes = 0
        self._reported_at = 0.0
        self._lock = threading.Lock()

    def start(self, progress: Progress) -> None:
        """Report how far it is at the beginning."""
        with self._lock:
            self._start = progress
            self._report()

    def add(self, *, files: int = 0, bytes: int = 0) -> None:
        """Count files and bytes that are done; negative numbers take back what turned out to be wrong."""
        with self._lock:
            self._files += files
            self._bytes += bytes
            if time.monotonic() - self._reported_at >= REPORT_INTERVAL_S:
                self._report()

    def finish(self) -> None:
        """Report the end, however short ago the last report was."""
        with self._lock:
            self._report()

    def _report(self) -> None:
        self._reported_at = time.monotonic()
        start = self._start
        self._on_progress(attrs.evolve(start, files=start.files + self._files, bytes=start.bytes + self._bytes))


def readable(count: float) -> str:
    """Write a number of bytes as people read it, as in ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
