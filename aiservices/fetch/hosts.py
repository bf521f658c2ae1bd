"""Slots for work with hosts that callers name: many in all, few for one host, so that a silent one holds few."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import attrs


@attrs.define
class _Host:
    """What is under way with one host, the waiting included."""

    slots: asyncio.Semaphore
    users: int = 0


class HostSlots:
    """Bounds how much is under way at once, in all and with one host. Lives on one event loop.

    Args:
        max_concurrency: in all.
        max_per_host: with one host. What waits for its host holds no slot of the others.
    """

    def __init__(self, max_concurrency: int, max_per_host: int) -> None:
        self._slots = asyncio.Semaphore(max_concurrency)
        self._max_per_host = max_per_host
        self._hosts: dict[str, _Host] = {}

    @contextlib.asynccontextmanager
    async def taken(self, host: str) -> AsyncIterator[None]:
        """Wait for a slot of the host, then for one of all, and hold both."""
        one = self._hosts.setdefault(host, _Host(asyncio.Semaphore(self._max_per_host)))
        one.users += 1
        try:
            async with one.slots, self._slots:
                yield
        finally:
            one.users -= 1
            if not one.users:
                del self._hosts[host]
