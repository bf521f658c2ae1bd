"""What one receiver and one tenant may take of the deliveries: so that a silent one does not hold what others need."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """Concurrent work with a bound in all and one for each key; what waits for its key holds no other's place.

    Args:
        total: most at once.
        per_key: most at once of one key.
    """

    def __init__(self, total: int, per_key: int) -> None:
        self._total = asyncio.Semaphore(total)
        self._per_key = per_key
        self._keys: dict[str, asyncio.Semaphore] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def take(self, key: str) -> AsyncIterator[None]:
        """Hold one slot of a key and one of all."""
        own = self._keys.setdefault(key, asyncio.Semaphore(self._per_key))
        self._users[key] += 1
        try:
            async with own, self._total:
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:  # no trace is left of a key that nobody uses: callers choose the keys
                del self._users[key], self._keys[key]


class Share:
    """Counts what is pending for each key against a bound.

    Args:
        limit: most pending of one key.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._pending: Counter[str] = Counter()

    def is_full(self, key: str) -> bool:
        """Whether a key has its share."""
        return self._pending.get(key, 0) >= self.limit

    def add(self, key: str) -> None:
        """Count one more."""
        self._pending[key] += 1

    def remove(self, key: str) -> None:
        """Count one less."""
        self._pending[key] -= 1
        if not self._pending[key]:
            del self._pending[key]
