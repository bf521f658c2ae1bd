"""What goes wrong: the caller's errors, and the reasons they are made of before the field is known."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from enum import StrEnum
from typing import ClassVar

import aiohttp

from aiservices.errors import FetchError


class Refused(FetchError):
    """The guard forbids the URL, or the address behind it: trying again changes nothing."""


class FetchResult(StrEnum):
    """How a download ended, for metrics and traces: a few words, whatever the URL was."""

    OK = "ok"
    REFUSED = "refused"
    """The guard forbids it."""
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    STATUS = "status"
    """It was answered with another status than 200, or redirected too often or to nowhere."""
    TOO_LARGE = "too_large"
    BROKEN_OFF = "broken_off"
    """The connection ended before the answer did, or the answer was no proper HTTP."""
    MEDIA_TYPE = "media_type"
    """What came is not what was asked for."""
    DATA_URL = "data_url"
    """A ``data:`` URL that cannot be decoded."""
    CANCELLED = "cancelled"
    """The job ended meanwhile, or the process did."""


class Failure(Exception):
    """A reason in one line that follows on "the URL …"; the fetcher makes the caller's error of it.

    Args:
        reason: holds neither path nor query of the URL, and no address.
        result: what it counts as.
    """

    error: ClassVar[type[FetchError]] = FetchError
    event: ClassVar[str] = "fetch.failed"

    def __init__(self, reason: str, result: FetchResult) -> None:
        super().__init__(reason, result)
        self.reason = reason
        self.result = result

    def as_error(self, field: str) -> FetchError:
        """Return the error for the caller, with the JSON path of the field that held the URL."""
        return self.error(field, self.reason)


class Refusal(Failure):
    """A failure because the guard forbids the URL; it becomes :class:`Refused`."""

    error = Refused
    event = "fetch.refused"

    def __init__(self, reason: str, result: FetchResult = FetchResult.REFUSED) -> None:
        super().__init__(reason, result)


_CLIENT_ERRORS: tuple[tuple[type[Exception], str, FetchResult], ...] = (
    (aiohttp.ClientConnectorCertificateError, "has a TLS certificate that is not trusted", FetchResult.TLS),
    (aiohttp.ClientSSLError, "failed in the TLS handshake", FetchResult.TLS),
    (aiohttp.ClientConnectorDNSError, "has a host that could not be resolved", FetchResult.DNS),
    (TimeoutError, "could not be connected in time", FetchResult.CONNECT),
    (aiohttp.ClientConnectorError, "could not be connected", FetchResult.CONNECT),
    (aiohttp.ServerDisconnectedError, "closed the connection without an answer", FetchResult.BROKEN_OFF),
    (aiohttp.ClientPayloadError, "broke off before its end", FetchResult.BROKEN_OFF),
    (aiohttp.ClientResponseError, "did not answer in proper HTTP", FetchResult.BROKEN_OFF),
    (Exception, "broke the connection", FetchResult.BROKEN_OFF),
)
"""The first that fits wins, so subclasses stand above their bases."""


@contextlib.contextmanager
def in_words(prefix: str = "") -> Iterator[None]:
    """Turn the client's errors, whose texts hold URLs and addresses, into a Failure with a reason of ours.

    Args:
        prefix: stands before the reason, as "redirects to a URL that ".
    """
    try:
        yield
    except Failure as error:
        raise type(error)(prefix + error.reason, error.result) from None
    except (aiohttp.ClientError, OSError) as error:
        reason, result = next((text, result) for kind, text, result in _CLIENT_ERRORS if isinstance(error, kind))
        raise Failure(prefix + reason, result) from None


@contextlib.asynccontextmanager
async def time_limit(timeout_s: float) -> AsyncIterator[None]:
    """Bound what runs inside; a Failure says that it took longer."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise Failure(f"took longer than {timeout_s:g} s", FetchResult.TIMEOUT) from None


def too_large(limit_bytes: int) -> Failure:
    """Return the failure of what is larger than ``limit_bytes``, in MiB where that is a whole number."""
    mib = limit_bytes / 1024 / 1024
    size = f"{mib:g} MiB" if mib.is_integer() else f"{limit_bytes} bytes"
    return Failure(f"is larger than {size}", FetchResult.TOO_LARGE)
