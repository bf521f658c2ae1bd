from __future__ import annotations

import asyncio
import threading

import pytest

from aiservices.storage.concurrency import in_thread, map_concurrently


async def test_an_error_comes_back_from_the_thread() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 1, 0)


async def test_a_cancelled_caller_does_not_wait_for_the_thread() -> None:
    began, gate, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        gate.wait(10)
        threading.Timer(0, ended.set).start()

    waiting = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(began.wait, 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    await asyncio.to_thread(ended.wait, 10)


async def test_work_is_mapped_in_order_with_so_many_at_once() -> None:
    running, most = 0, 0

    async def double(item: int) -> int:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        for _ in range(9 - item):
            await asyncio.sleep(0)
        running -= 1
        return 2 * item

    assert await map_concurrently(double, range(9), 3) == [2 * item for item in range(9)]
    assert most == 3
    assert await map_concurrently(double, [], 3) == []


async def test_the_first_error_cancels_the_other_work() -> None:
    ended: list[str] = []

    async def work(item: int) -> None:
        if item == 1:
            raise ZeroDivisionError
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    with pytest.raises(ExceptionGroup) as caught:
        await map_concurrently(work, range(5), 2)
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
    assert ended == ["cancelled"]
