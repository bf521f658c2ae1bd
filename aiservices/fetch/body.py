"""The body of an answer, read within its bounds."""

from __future__ import annotations

import io

import aiohttp

from aiservices.fetch.media_type import SNIFF_BYTES, check_kind
from aiservices.fetch.refusal import Failure, FetchResult, too_large
from aiservices.handler import MediaKind

MIN_CHUNK_BYTES = 64
"""Smallest average size of the chunks of a body: each costs the loop about a microsecond, and nobody sends a file
in such small ones."""

FREE_CHUNKS = 256
"""So many may be smaller: whatever begins with a few short ones."""


async def read_body(response: aiohttp.ClientResponse, kind: MediaKind, limit_bytes: int) -> bytes:
    """Read the body of an answer with status 200; stop as soon as it is too large or of another kind.

    Args:
        response: still unread, and not to be decompressed by the client.
        kind: what the first bytes have to tell.
        limit_bytes: of the whole body.

    Raises:
        Failure: status, encoding, size, chunks or kind.
    """
    if response.status != 200:
        raise Failure(f"answered {response.status}", FetchResult.STATUS)
    if any(value.strip().lower() not in ("", "identity") for value in response.headers.getall("Content-Encoding", ())):
        raise Failure("is sent with a Content-Encoding, though none was asked for", FetchResult.BROKEN_OFF)
    if (response.content_length or 0) > limit_bytes:
        raise too_large(limit_bytes)
    body = io.BytesIO()  # a list of chunks would let one-byte chunks cost forty times their size
    judged = False
    chunks = 0
    async for chunk, ended in response.content.iter_chunks():
        body.write(chunk)
        chunks += ended
        if chunks > FREE_CHUNKS + body.tell() // MIN_CHUNK_BYTES:
            raise Failure(f"is sent in chunks of less than {MIN_CHUNK_BYTES} bytes", FetchResult.BROKEN_OFF)
        if body.tell() > limit_bytes:
            raise too_large(limit_bytes)
        if not judged and body.tell() >= SNIFF_BYTES:
            check_kind(body.getvalue(), kind)
            judged = True
    return body.getvalue()
