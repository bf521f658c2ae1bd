"""The bytes of request bodies: bounded one by one, and all that are under way together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from aiservices.errors import InvalidInput
from aiservices.transports.http.errors import BodyTooLarge, BodyTooSlow, CallerGone, TooManyBodies
from aiservices.transports.http.lookup import REGISTRY

RETRY_AFTER_S = 1.0


class BodyBudget:
    """Counts the bytes of all bodies that are being read or decoded.

    Args:
        max_bytes: bound on their sum.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.taken_bytes = 0

    def take(self, count: int) -> None:
        """Take room for so many bytes.

        Raises:
            TooManyBodies: there is not enough.
        """
        if self.taken_bytes + count > self._max_bytes:
            raise TooManyBodies("too many request bodies are under way; try again", RETRY_AFTER_S)
        self.taken_bytes += count

    def give_back(self, count: int) -> None:
        """Give room back."""
        self.taken_bytes -= count


BUDGET = web.AppKey("budget", BodyBudget)


@contextlib.asynccontextmanager
async def read_bytes(request: web.Request, max_bytes: int) -> AsyncIterator[bytes]:
    """Read a body; its bytes count against the budget until the block ends.

    Args:
        request: whose body was not read yet.
        max_bytes: bound on this body.

    Raises:
        BodyTooLarge, BodyTooSlow, TooManyBodies, CallerGone: it passes a bound, or never comes.
        InvalidInput: it is not what its Content-Encoding says.
    """
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    budget, taken = request.app[BUDGET], request.content_length or 0
    budget.take(taken)
    try:
        body = bytearray()
        async for chunk in _chunks(request):
            body += chunk
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
            if len(body) > taken:  # a body that does not tell its length, or comes compressed
                budget.take(len(body) - taken)
                taken = len(body)
        yield bytes(body)
    finally:
        budget.give_back(taken)


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    content = request.content
    if content.is_eof():  # all of it came with the headers: most bodies do
        yield content.read_nowait()
        return
    limit_s = request.app[REGISTRY].config.server.body_timeout_s
    try:
        async with asyncio.timeout(limit_s):
            async for chunk in content.iter_any():
                yield chunk
    except ConnectionError:
        raise CallerGone("the caller went away") from None
    except web.RequestPayloadError:
        raise InvalidInput("$", "the body is not what its Content-Encoding says") from None
    except TimeoutError:
        raise BodyTooSlow(f"the body did not come within {limit_s:g} s") from None


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {max_bytes} bytes")
