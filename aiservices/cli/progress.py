"""How far a download is: a line that is redrawn on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from aiservices.storage import Progress, readable

BAR_WIDTH = 20
PLAIN_STEPS = 10
"""How many plain lines a transfer prints at most."""


class ProgressLine:
    """Shows the progress of one transfer.

    Args:
        name: what is transferred.
        out: where to write; the form depends on whether it is a terminal.
        clock: returns seconds.
    """

    def __init__(self, name: str, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._out = out
        self._clock = clock
        self._terminal = out.isatty()
        self._begin: tuple[float, int] | None = None
        self._step = -1

    def __call__(self, progress: Progress) -> None:
        """Redraw the line, or print another one when a further step is done."""
        if self._begin is None:
            self._begin = self._clock(), progress.bytes
        if self._terminal:
            self._out.write(f"\r\x1b[K{self._name}: {bar(progress)} {self._text(progress)}")
        elif (step := int(share(progress) * PLAIN_STEPS)) > self._step:
            self._step = step
            self._out.write(f"{self._name}: {share(progress):.0%}, {self._text(progress)}\n")
        self._out.flush()

    def close(self) -> None:
        """Clear the line."""
        if self._terminal and self._begin is not None:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def _text(self, progress: Progress) -> str:
        files = f"{progress.files}/{progress.files_total} files, {progress}"
        assert self._begin is not None
        seconds, count = self._clock() - self._begin[0], progress.bytes - self._begin[1]
        if seconds <= 0 or count <= 0:
            return files
        left_s = (progress.bytes_total - progress.bytes) * seconds / count
        return f"{files}, {readable(count / seconds)}/s, {duration(left_s)} left"


def share(progress: Progress) -> float:
    """Return how much of it is done, from 0 to 1."""
    return progress.bytes / progress.bytes_total if progress.bytes_total else 1.0


def bar(progress: Progress) -> str:
    """Draw how much of it is done."""
    filled = round(share(progress) * BAR_WIDTH)
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {share(progress):4.0%}"


def duration(seconds: float) -> str:
    """Write a time as people read it, as in ``2 min 5 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
