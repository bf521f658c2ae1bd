"""A host holds few of the slots."""

from __future__ import annotations

import asyncio

import attrs

from aiservices.fetch.hosts import HostSlots
from tests.fetch.helpers import LOOPBACK, PNG, Names, Serve, answering, fetching, writing


async def test_what_waits_for_its_host_holds_no_slot_of_the_others() -> None:
    slots, release, held = HostSlots(3, 2), asyncio.Event(), 0

    async def hold() -> None:
        nonlocal held
        async with slots.taken("silent"):
            held += 1
            await release.wait()

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(hold())
        await asyncio.sleep(0)
        async with slots.taken("other"):
            pass
        assert held == 2
        release.set()
    assert held == 10
    assert slots._hosts == {}, "nothing is kept of a host"


async def test_a_silent_host_leaves_downloads_to_others(serve: Serve, serve_raw: Serve) -> None:
    silent, good = await serve_raw(writing(stall=True)), (await serve(answering(PNG))).with_host("good.test")
    config = attrs.evolve(LOOPBACK, max_concurrency=3, max_per_host=2, timeout_s=30)
    async with fetching(config, names=Names({"good.test": [["127.0.0.1"]]})) as fetcher:
        waiting = [asyncio.create_task(fetcher.fetch(str(silent), field="$.url", kind="image")) for _ in range(6)]
        async with asyncio.timeout(5):
            assert await fetcher.fetch(str(good), field="$.url", kind="image") == PNG
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
