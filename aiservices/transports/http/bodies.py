"""The bytes of request bodies: bounded one by one, and all that are under way together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from aiohttp import StreamReader, web

from aiservices.errors import InvalidInput
from aiservices.transports.http.errors import BodyTooLarge, BodyTooSlow, CallerGone, TooManyBodies, UnsupportedBody
from aiservices.transports.http.lookup import REGISTRY

RETRY_AFTER_S = 1.0

THREAD_ABOVE_BYTES = 256 * 1024
"""Larger bodies are decoded off the loop."""

T = TypeVar("T")


class BodyBudget:
    """Counts the bytes of all bodies that are being read or decoded.

    Args:
        max_bytes: bound on their sum.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._decoding = asyncio.Lock()

    async def decode(self, decode: Callable[[bytes | bytearray], T], raw: bytes | bytearray) -> T:
        """Decode a body, a large one on a thread and one large one at a time.

        Decoding makes a few copies of a body beside the one that is counted. Threads would not hasten it, for nearly
        all of it holds the interpreter's lock, and each would hold such copies.
        """
        if len(raw) <= THREAD_ABOVE_BYTES:
            return decode(raw)
        async with self._decoding:
            return await asyncio.to_thread(decode, raw)


class Held:
    """The part of the budget that one body holds, until the block of its ``with`` ends."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._bytes = 0

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *error: object) -> None:
        self._budget.held_bytes -= self._bytes

    def grow(self, size_bytes: int) -> None:
        """Hold at least so many bytes.

        Raises:
            TooManyBodies: there is no room for them.
        """
        more = size_bytes - self._bytes
        if more <= 0:
            return
        if self._budget.held_bytes + more > self._budget.max_bytes:
            raise TooManyBodies("too many request bodies are under way; try again", RETRY_AFTER_S)
        self._budget.held_bytes += more
        self._bytes = size_bytes


BUDGET = web.AppKey("budget", BodyBudget)


def hold(request: web.Request) -> Held:
    """Begin to count a request's body against the application's budget."""
    return Held(request.app[BUDGET])


async def read_bytes(request: web.Request, max_bytes: int, held: Held) -> bytes | bytearray:
    """Read a body.

    Args:
        request: whose body was not read yet.
        max_bytes: bound on this body.
        held: grows with the body.

    Raises:
        BodyTooLarge, BodyTooSlow, TooManyBodies, CallerGone: it passes a bound, or never comes.
        InvalidInput: it is not what its Transfer-Encoding says.
        UnsupportedBody: it is compressed, which may hide a thousand times its size.
    """
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedBody("compressed bodies are not taken: send it without Content-Encoding")
    told_bytes = request.content_length or 0
    if told_bytes > max_bytes:
        raise _too_large(max_bytes)
    held.grow(told_bytes)
    limit_s = request.app[REGISTRY].config.server.body_timeout_s
    try:
        if request.content.is_eof() and request.content.total_bytes <= max_bytes:
            held.grow(request.content.total_bytes)
            return request.content.read_nowait()  # it came with the headers, as most bodies do
        async with asyncio.timeout(limit_s):
            return await _read_rest(request.content, told_bytes, max_bytes, held)
    except ConnectionError:
        raise CallerGone("the caller went away") from None
    except web.RequestPayloadError:
        raise InvalidInput("$", "the body is not what its Transfer-Encoding says") from None
    except TimeoutError:
        raise BodyTooSlow(f"the body did not come within {limit_s:g} s") from None


async def _read_rest(content: StreamReader, told_bytes: int, max_bytes: int, held: Held) -> bytearray:
    # In place where its length is told: many that grow side by side scatter over twice their size in the heap. The
    # system gives memory only to what is written.
    body, filled = bytearray(told_bytes), 0
    async for chunk in content.iter_any():
        filled += len(chunk)
        if filled > max_bytes:
            raise _too_large(max_bytes)
        held.grow(filled)  # a body may not tell its length
        body[filled - len(chunk) : filled] = chunk
    return body


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {max_bytes} bytes")
