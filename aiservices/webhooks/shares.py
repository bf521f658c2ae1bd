"""What one receiver and one tenant may take of the deliveries: so that a silent one does not hold what others need."""

from __future__ import annotations

from collections import Counter


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
