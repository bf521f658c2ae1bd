"""The chunks of a job's stream that nobody has read yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

ENTRY_BYTES = 8
"""What a number, a name's quotes or a comma weigh, roughly."""


class StreamBuffer:
    """Unread chunks, bounded by their size on the wire; the oldest give way.

    Args:
        max_bytes: bound on the JSON of all chunks kept; one chunk is kept, however large.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._chunks: deque[tuple[Any, int]] = deque()
        self.size_bytes = 0
        """About how many bytes of JSON are kept."""
        self.dropped = 0
        """Chunks that gave way before anyone read them."""

    def __len__(self) -> int:
        return len(self._chunks)

    def append(self, chunk: Any) -> None:
        """Add a chunk of plain values; drop the oldest ones until the bound holds again."""
        size_bytes = wire_bytes(chunk)
        self._chunks.append((chunk, size_bytes))
        self.size_bytes += size_bytes
        while self.size_bytes > self._max_bytes and len(self._chunks) > 1:
            self.size_bytes -= self._chunks.popleft()[1]
            self.dropped += 1

    def drain(self) -> list[Any]:
        """Take every chunk out, oldest first."""
        chunks = [chunk for chunk, _ in self._chunks]
        self.clear()
        return chunks

    def clear(self) -> None:
        """Forget what nobody read, and that anything was dropped."""
        self._chunks.clear()
        self.size_bytes = self.dropped = 0


def wire_bytes(value: Any) -> int:
    """Estimate the JSON size of plain values in bytes, ``bytes`` as base64; exact for plain ASCII text."""
    if isinstance(value, str):
        return len(value) + 2
    if isinstance(value, bytes):
        return (len(value) + 2) // 3 * 4 + 2
    if isinstance(value, Mapping):
        return ENTRY_BYTES + sum(len(str(key)) + ENTRY_BYTES + wire_bytes(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return ENTRY_BYTES + sum(map(wire_bytes, value))
    return ENTRY_BYTES
