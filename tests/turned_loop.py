"""An event loop whose clock a test turns."""

from __future__ import annotations

import asyncio


class TurnedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands until the test turns it."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def settle(self) -> None:
        """Run whatever is due, until nothing is."""
        for _ in range(12):
            self.call_soon(self.stop)
            self.run_forever()
