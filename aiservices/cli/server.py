"""A running server as its callers see it, for commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from aiservices.environment import KEY_VARIABLE
from aiservices.errors import ConfigError, JobNotFound, ServiceError, UnknownService
from aiservices.jobs import MAX_LIMIT, JobStatus, Wanted

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
"""How long a server may send nothing of an answer."""

Json = dict[str, Any]


class Server:
    """What a server can be asked; made by :func:`connect`."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url, session

    async def services(self, only: str | None) -> list[str]:
        """Return the names of its services.

        Args:
            only: the one that is wanted; None: all.

        Raises:
            UnknownService: the wanted one is not among them.
            ServiceError: no aiservices answers there.
        """
        _, shown = await self._ask("GET", "readyz")
        if not isinstance(found := shown.get("services"), dict):
            told = f" ({shown['error']})" if "error" in shown else ""
            raise ServiceError(f"what answers at {self._url} is no aiservices{told}; name the server with --url")
        if only is not None and only not in found:
            raise UnknownService(only, list(found))
        return [only] if only is not None else list(found)

    async def jobs(self, services: Sequence[str], wanted: Wanted) -> tuple[list[Json], bool]:
        """Return the newest jobs of these services together, and whether there may be older ones.

        Raises:
            ServiceError: the server refuses, with its reason.
        """
        parts = await asyncio.gather(*(self._jobs(service, wanted.limit, wanted.statuses) for service in services))
        found = sorted((job for jobs, _ in parts for job in jobs), key=lambda job: str(job["createdAt"]), reverse=True)
        return found[: wanted.limit], len(found) > wanted.limit or any(more for _, more in parts)

    async def call(self, method: str, operation: str, services: Sequence[str], job_id: str) -> Json:
        """Ask for an operation on a job, whichever of these services has it; return the answer and the service.

        Raises:
            ServiceError: none has it, or the server refuses, with its reason.
        """
        for service in services:
            try:
                return {**await self._operate(method, service, f"{operation}/{job_id}", {}), "service": service}
            except JobNotFound:
                continue
        raise ServiceError(
            f"no job {job_id} in {', '.join(services)}: it never was, is another tenant's, or is forgotten "
            "('aiservices jobs list' shows those there are)"
        )

    async def _jobs(self, service: str, limit: int, statuses: frozenset[JobStatus]) -> tuple[list[Json], bool]:
        found: list[Json] = []
        query = {"status": ",".join(sorted(statuses))} if statuses else {}
        while True:
            asked = {**query, "limit": f"{min(MAX_LIMIT, limit - len(found))}"}
            page = await self._operate("GET", service, "jobs", asked)
            found += ({**job, "service": service} for job in page["jobs"])
            if "next" not in page or len(found) >= limit:
                return found, "next" in page
            query["before"] = page["next"]

    async def _operate(self, method: str, service: str, operation: str, query: Mapping[str, str]) -> Json:
        status, shown = await self._ask(method, f"{service}/api/v1/{operation}", query)
        if status == 200:
            return shown
        reason = str(shown.get("error", f"it answers {status}"))
        if status == 401:
            raise ServiceError(f"{self._url} asks for one of its keys: set {KEY_VARIABLE} to one that it knows")
        if status == 404 and "id" in shown:
            raise JobNotFound(str(shown["id"]))
        raise ServiceError(f"{self._url}: {reason}")

    async def _ask(self, method: str, path: str, query: Mapping[str, str] | None = None) -> tuple[int, Json]:
        url = URL(f"{self._url}/{path}")
        try:
            async with self._session.request(method, url, params=query, allow_redirects=False) as answer:
                return answer.status, msgspec.json.decode(await answer.read(), type=Json)
        except msgspec.DecodeError:
            raise ServiceError(f"what answers at {self._url} is no aiservices; name the server with --url") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = getattr(error, "os_error", error)
            raise ServiceError(
                f"no server answers at {self._url} ({reason or 'it takes too long'}); start one with 'aiservices "
                "serve', name another with --url, or read the file of one that has ended with --journal"
            ) from None


@asynccontextmanager
async def connect(url: str, key: str) -> AsyncIterator[Server]:
    """Make what asks the server at an address.

    Args:
        url: as ``https://host:port``, with a path where it is not served at the root.
        key: for ``Authorization``; empty: none.

    Raises:
        ConfigError: it is no such address.
    """
    try:
        parsed = URL(url)
    except ValueError:
        parsed = URL()
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.user or parsed.query_string:
        raise ConfigError(f"--url: expected an address as http://127.0.0.1:8001, got {url!r}")
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        yield Server(url.rstrip("/"), session)
