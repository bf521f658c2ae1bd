"""How far a download or an upload is."""

from __future__ import annotations

from collections.abc import Callable

import attrs


@attrs.frozen
class Progress:
    """Files and bytes done so far, what was there already included, and how many there are.

    Attributes:
        elsewhere: another process works on it, and we wait for its end.
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


def readable(count: float) -> str:
    """Write a number of bytes as people read it, as in ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
