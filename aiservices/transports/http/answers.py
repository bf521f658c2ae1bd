"""Large answers: sent piece by piece from the bytes that are kept, never copied whole, and bounded all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from aiservices.jobs.output import ON_LOOP_BYTES
from aiservices.transports.http.errors import TooManyAnswers

PIECE_BYTES = 256 * 1024
"""What one reader's connection may hold of an answer, beside the kernel's own buffers."""

WAIT_S = 5.0
"""How long an answer waits for room; RunPod's Python client gives a poll 10 s."""

RETRY_AFTER_S = 1.0


class AnswerBudget:
    """Counts the bytes of large answers that are being sent; what many readers share counts once.

    They stay in memory until their last reader is done, also when the job's retention ends meanwhile.

    Args:
        max_bytes: bound on their sum; one answer alone may be larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._readers: dict[int, int] = {}
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, body: bytes) -> AsyncIterator[None]:
        """Count a body until the block ends.

        Raises:
            TooManyAnswers: there was no room for it in time.
        """
        await self._join(body)
        try:
            yield
        finally:
            await self._leave(body)

    async def _join(self, body: bytes) -> None:
        try:
            async with asyncio.timeout(WAIT_S), self._changed:
                await self._changed.wait_for(lambda: self._fits(body))
        except TimeoutError:
            raise TooManyAnswers("too many large answers are under way; try again", RETRY_AFTER_S) from None
        readers = self._readers.get(id(body), 0)
        self._readers[id(body)] = readers + 1
        self.held_bytes += 0 if readers else len(body)

    def _fits(self, body: bytes) -> bool:
        known = id(body) in self._readers
        return known or not self.held_bytes or self.held_bytes + len(body) <= self.max_bytes

    async def _leave(self, body: bytes) -> None:
        self._readers[id(body)] -= 1
        if not self._readers[id(body)]:
            del self._readers[id(body)]
            self.held_bytes -= len(body)
            async with self._changed:
                self._changed.notify_all()


ANSWERS = web.AppKey("answers", AnswerBudget)


async def send(
    request: web.Request, parts: Sequence[bytes], content_type: str = "application/json"
) -> web.StreamResponse:
    """Answer with bytes; large ones are sent here, as fast as the reader takes them.

    Args:
        request: what is answered.
        parts: the body, in pieces of any size; they are shared with whoever else reads them.
        content_type: of the whole.

    Raises:
        TooManyAnswers: there was no room for it in time.
    """
    size_bytes = sum(map(len, parts))
    if size_bytes <= ON_LOOP_BYTES:
        return web.Response(body=b"".join(parts), headers={"Content-Type": content_type})
    response = web.StreamResponse(headers={"Content-Type": content_type})
    response.content_length = size_bytes
    if request.method == "HEAD":
        return response
    async with request.app[ANSWERS].hold(max(parts, key=len)):
        try:
            await response.prepare(request)
            for part in parts:
                await _send_part(response, memoryview(part))
            await response.write_eof()
        except ConnectionError:
            pass  # the reader went away, or did not read and was sent away
    return response


async def _send_part(response: web.StreamResponse, part: memoryview) -> None:
    for start in range(0, len(part), PIECE_BYTES):
        await response.write(part[start : start + PIECE_BYTES])
