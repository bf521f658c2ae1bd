"""How late the event loop wakes up."""

from __future__ import annotations

import asyncio

from aiservices.metrics.process import Metrics


async def watch_loop_lag(metrics: Metrics, interval_s: float = 1.0) -> None:
    """Measure until cancelled how late the event loop wakes up from a sleep of ``interval_s``."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval_s
        await asyncio.sleep(interval_s)
        metrics.loop_lag(max(0.0, loop.time() - due))
