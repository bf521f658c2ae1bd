from __future__ import annotations

import asyncio
import threading
from functools import partial

from structlog.testing import capture_logs

from aiservices.pipeline.calls import LoopCalls


async def test_calls_of_any_thread_are_made_on_the_loop_in_their_order() -> None:
    calls, made = LoopCalls(), []
    calls.bind()

    def post() -> None:
        for number in range(100):
            calls.post(lambda number=number: made.append((number, threading.get_ident())))  # type: ignore[misc]

    await asyncio.to_thread(post)
    await asyncio.sleep(0)
    assert made == [(number, threading.get_ident()) for number in range(100)]


async def test_a_call_that_raises_takes_none_behind_it_along() -> None:
    calls, made = LoopCalls(), list[str]()
    calls.bind()

    def raises() -> None:
        raise ValueError("a report that cannot be taken")

    for call in (partial(made.append, "before"), raises, partial(made.append, "behind")):
        calls.post(call)
    with capture_logs() as logs:
        await asyncio.sleep(0)
    assert made == ["before", "behind"]
    assert [entry["event"] for entry in logs] == ["loop.call_failed"]


def test_calls_after_the_loop_was_closed_are_dropped() -> None:
    calls = LoopCalls()

    async def bind() -> None:
        calls.bind()

    asyncio.run(bind())
    for _ in range(3):
        calls.post(lambda: None)
    assert not calls._calls
