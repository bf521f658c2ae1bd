"""Looking a host up: by the system in threads of its own, and through the guard."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

from aiservices.fetch.addresses import AllowList
from aiservices.fetch.refusal import Refusal

_MAX_ADDRESSES = 8  # each is tried for connect_timeout_s, and a hostile name may have hundreds


class GuardedResolver(AbstractResolver):
    """Gives a client only addresses that were checked; they are what it connects.

    Args:
        lookup: looks names up, without any check. Its owner closes it.
        allowed: hosts that may be private.
    """

    def __init__(self, lookup: AbstractResolver, allowed: AllowList) -> None:
        self._lookup = lookup
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look a host up; every address of it has to be permitted.

        Raises:
            OSError: there is none.
            Refusal: one of them is private.
        """
        found = await self._lookup.resolve(host, port, family)
        if not found:
            raise OSError("no address")
        if not self._allowed.covers_host(host, port) and not all(self._may_connect(one, port) for one in found):
            raise Refusal("resolves to a private address")
        return found[:_MAX_ADDRESSES]

    async def close(self) -> None:
        """Leave the lookup to its owner."""

    def _may_connect(self, found: ResolveResult, port: int) -> bool:
        try:
            address = ipaddress.ip_address(found["host"])
        except ValueError:
            return False
        return self._allowed.permits(address, port)


class SystemResolver(AbstractResolver):
    """``getaddrinfo`` in its own threads: a slow lookup cannot be cancelled and must not fill the loop's pool.

    It has no thread before the first lookup.

    Args:
        max_threads: lookups at a time; more wait.
    """

    def __init__(self, max_threads: int) -> None:
        self._threads = ThreadPoolExecutor(max_threads, thread_name_prefix="fetch-dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look a host up as the system does.

        Raises:
            OSError: the host is not known, or this was closed.
        """
        lookup = functools.partial(
            socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        try:
            answer = asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        except RuntimeError:
            raise OSError("the resolver is closed") from None
        return [
            {
                "hostname": host,
                "host": str(sockaddr[0]),
                "port": port,
                "family": found_family,
                "proto": proto,
                "flags": socket.AI_NUMERICHOST,
            }
            for found_family, _, proto, _, sockaddr in await answer
        ]

    async def close(self) -> None:
        """Take no more lookups. A thread ends with the lookup that it is in; this does not wait for it."""
        self._threads.shutdown(wait=False)
