"""Uploads into a bucket that a job names.

Its endpoint is a URL that a caller chose, so the store behind it may be hostile. The requests are signed here, offline,
and go through the guard of :mod:`aiservices.fetch`: no redirect is followed, no answer is read, no word of it is told.
 Slots and time are of their own, and one silent store holds few of them; what waits is bounded in bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from aiservices.errors import FetchError, JobFailed, ServiceError
from aiservices.fetch import Refused, host_of
from aiservices.fetch.hosts import HostSlots
from aiservices.jobs import Destination, OutputFile
from aiservices.outputs.signing import SignedUpload, sign_upload
from aiservices.settings import OutputsConfig

ENDPOINT_FIELD = "$.s3Config.endpointUrl"
ATTEMPTS = 2
"""Tries of one PUT: a second one helps over a connection that broke, and ``callers_timeout_s`` bounds both."""


class Putter(Protocol):
    """What uploads need of :class:`aiservices.fetch.Fetcher`."""

    def check_url(self, url: str, *, field: str) -> None:
        """Raise FetchError for a URL that the guard forbids by its text alone."""

    async def put(self, url: str, body: bytes, *, headers: Mapping[str, str], timeout_s: float, field: str) -> int:
        """PUT and return the status, or raise FetchError."""


class CallersBuckets:
    """Puts files into buckets that jobs name. Lives on the event loop.

    Args:
        config: bounds and times.
        putter: sends through the guard.
    """

    def __init__(self, config: OutputsConfig, putter: Putter) -> None:
        self._config = config
        self._putter = putter
        self._slots = HostSlots(config.callers_concurrency, config.callers_per_host)
        self._waiting_bytes: Counter[str] = Counter()

    async def upload(
        self, destination: Destination, files: tuple[OutputFile, ...], key_of: Callable[[OutputFile], str]
    ) -> dict[str, str]:
        """Upload files; return signed URLs as ``NAME_url``.

        Args:
            destination: the caller's bucket.
            files: what to upload.
            key_of: gives the key of a file in the bucket.

        Raises:
            JobFailed: an upload failed; says why in our own words.
        """
        host = host_of(destination.endpoint_url)
        limit_s = self._config.callers_timeout_s
        with self._counted(host, sum(len(file.data) for file in files)):
            async with self._slots.taken(host):
                try:
                    async with asyncio.timeout(limit_s):
                        return {f"{one.name}_url": await self._upload(destination, one, key_of(one)) for one in files}
                except TimeoutError:
                    raise JobFailed(f"it took longer than {limit_s:g} s") from None

    @contextlib.contextmanager
    def _counted(self, host: str, size_bytes: int) -> Iterator[None]:
        """Count what waits or is sent; one host may hold as much as is left to the others, so half at most."""
        left = self._config.callers_max_bytes - self._waiting_bytes.total()
        others_wait = self._waiting_bytes.total() > 0  # alone, one of any size may go
        held = self._waiting_bytes[host]
        if others_wait and (size_bytes > left or (held and held + size_bytes > left)):
            raise JobFailed("too many bytes wait for buckets that jobs name (callers_max_bytes)")
        self._waiting_bytes[host] += size_bytes
        try:
            yield
        finally:
            self._waiting_bytes[host] -= size_bytes
            if not self._waiting_bytes[host]:
                del self._waiting_bytes[host]

    async def _upload(self, destination: Destination, file: OutputFile, key: str) -> str:
        lifetime_s = self._config.url_lifetime_s
        try:
            # Checked again: what was allowed when the job came may not be any more, and no other URL can be signed.
            self._putter.check_url(destination.endpoint_url, field=ENDPOINT_FIELD)
            signed = await asyncio.to_thread(sign_upload, destination, key, file, url_lifetime_s=lifetime_s)
        except FetchError as error:
            raise JobFailed(f"the store {error.reason}") from None
        except ServiceError as error:
            raise JobFailed(str(error)) from None
        for attempt in range(1, ATTEMPTS + 1):
            status, reason = await self._put(signed, file)
            if 200 <= status < 300:
                return signed.read_url
            if 300 <= status < 500 or attempt == ATTEMPTS:
                break
        raise JobFailed(f"the store {reason}")

    async def _put(self, signed: SignedUpload, file: OutputFile) -> tuple[int, str]:
        """Return the status and it in words; status 0 if none came, which is worth another try."""
        try:
            status = await self._putter.put(
                signed.url,
                file.data,
                headers=signed.headers,
                timeout_s=self._config.callers_timeout_s,
                field=ENDPOINT_FIELD,
            )
        except Refused as error:
            raise JobFailed(f"the store {error.reason}") from None
        except FetchError as error:
            return 0, error.reason
        return status, f"answered {status}"
