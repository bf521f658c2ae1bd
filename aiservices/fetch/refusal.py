"""What goes wrong: the caller's errors, and the reasons they are made of before the field is known."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import ClassVar

import aiohttp

from aiservices.errors import FetchError


class Refused(FetchError):
    """The guard forbids the URL, or the address behind it: trying again changes nothing."""


class Failure(Exception):
    """A reason in one line that follows on "the URL …"; the fetcher makes the caller's error of it.

    Args:
        reason: holds neither path nor query of the URL, and no address.
    """

    error: ClassVar[type[FetchError]] = FetchError
    event: ClassVar[str] = "fetch.failed"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def as_error(self, field: str) -> FetchError:
        """Return the error for the caller, with the JSON path of the field that held the URL."""
        return self.error(field, self.reason)


class Refusal(Failure):
    """A failure because the guard forbids the URL; it becomes :class:`Refused`."""

    error = Refused
    event = "fetch.refused"


_CLIENT_ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientConnectorCertificateError, "has a TLS certificate that is not trusted"),
    (aiohttp.ClientSSLError, "failed in the TLS handshake"),
    (aiohttp.ClientConnectorDNSError, "has a host that could not be resolved"),
    (TimeoutError, "could not be connected in time"),
    (aiohttp.ClientConnectorError, "could not be connected"),
    (aiohttp.ServerDisconnectedError, "closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "broke off before its end"),
    (aiohttp.ClientResponseError, "did not answer in proper HTTP"),
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
        raise type(error)(prefix + error.reason) from None
    except (aiohttp.ClientError, OSError) as error:
        reason = next((text for kind, text in _CLIENT_ERRORS if isinstance(error, kind)), "broke the connection")
        raise Failure(prefix + reason) from None


@contextlib.asynccontextmanager
async def time_limit(timeout_s: float) -> AsyncIterator[None]:
    """Bound what runs inside; a Failure says that it took longer."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise Failure(f"took longer than {timeout_s:g} s") from None


def too_large(limit_bytes: int) -> Failure:
    """Return the failure of what is larger than ``limit_bytes``, in MiB where that is a whole number."""
    mib = limit_bytes / 1024 / 1024
    return Failure(f"is larger than {f'{mib:g} MiB' if mib.is_integer() else f'{limit_bytes} bytes'}")
