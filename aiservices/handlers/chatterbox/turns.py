"""Turns at what several jobs may want at once and one has to make. On the event loop: no thread waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Lets one job at a time make a thing, told by a key; the others wait, and then find it made."""

    def __init__(self) -> None:
        self._taken: dict[str, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        """Wait for one's turn and have it for the length of the block; a block that fails gives way, too."""
        while (taken := self._taken.get(key)) is not None:
            await asyncio.wait([taken])
        mine = self._taken[key] = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            del self._taken[key]
            mine.set_result(None)
