"""One job makes what several want; needs nothing installed."""

from __future__ import annotations

import asyncio

from aiservices.handlers.chatterbox.turns import Turns


async def test_the_others_wait_and_a_different_key_does_not() -> None:
    turns, made, go_on = Turns(), list[str](), asyncio.Event()
    began = {name: asyncio.Event() for name in ("first", "second", "other")}

    async def make(name: str, key: str) -> None:
        async with turns.turn(key):
            made.append(name)
            began[name].set()
            await go_on.wait()

    first = asyncio.create_task(make("first", "a"))
    await began["first"].wait()
    second, other = asyncio.create_task(make("second", "a")), asyncio.create_task(make("other", "b"))
    await began["other"].wait()
    assert made == ["first", "other"]
    go_on.set()
    await asyncio.gather(first, second, other)
    assert made == ["first", "other", "second"]
    assert not turns._taken


async def test_one_that_is_cancelled_gives_way() -> None:
    turns, made, began = Turns(), list[str](), asyncio.Event()

    async def wait_for_ever() -> None:
        async with turns.turn("a"):
            began.set()
            await asyncio.Event().wait()

    async def make() -> None:
        async with turns.turn("a"):
            made.append("second")

    first = asyncio.create_task(wait_for_ever())
    await began.wait()
    second = asyncio.create_task(make())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first, second])
    assert made == ["second"]
