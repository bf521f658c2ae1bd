"""How the S3 client speaks HTTP: to the store that it was told of and no other, and answers are read within a bound."""

from __future__ import annotations

from functools import cache
from typing import Any

import aiohttp

from aiservices.errors import ServiceError

MAX_ANSWER_BYTES = 16 * 2**20
"""Of an answer that is kept as a whole: listings (1 000 keys of 1 024 bytes have some 4 MiB), manifests, errors."""

_CHUNK_BYTES = 64 * 1024


class _Answer(aiohttp.ClientResponse):
    """An answer that is read as a whole only within a bound. Files do not pass here, they are streamed."""

    async def read(self) -> bytes:
        body = bytearray()
        async for chunk in self.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                self.close()
                raise ServiceError(f"the store gave an answer of more than {MAX_ANSWER_BYTES} bytes")
        return bytes(body)


class _NoRedirects:
    """Sends what the client sends. Followed by aiohttp, a redirect would take the session's token to another origin."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, method: str, **named: Any) -> aiohttp.ClientResponse:
        return await self._session.request(method, allow_redirects=False, **named)


@cache
def bounded_session() -> type[Any]:
    """Return the class of HTTP sessions for ``AioConfig(http_session_cls=…)``; needs ``aiobotocore``."""
    from aiobotocore.httpsession import AIOHTTPSession

    class BoundedSession(AIOHTTPSession):  # type: ignore[misc]  # it ships no types
        """As aiobotocore's, with answers and redirects bounded."""

        async def _get_session(self, proxy_url: str | None) -> Any:
            if (found := self._sessions.get(proxy_url)) is None:
                session = aiohttp.ClientSession(
                    connector=self._create_connector(proxy_url),
                    timeout=self._timeout,
                    skip_auto_headers={"CONTENT-TYPE"},
                    auto_decompress=False,
                    response_class=_Answer,
                )
                found = _NoRedirects(await self._exit_stack.enter_async_context(session))
                self._sessions[proxy_url] = found
            return found

    return BoundedSession
