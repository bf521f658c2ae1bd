from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiservices.timers import COMPACT_ABOVE, Timers
from tests.turned_loop import TurnedLoop


@pytest.fixture
def loop() -> Any:
    with asyncio.Runner(loop_factory=TurnedLoop) as runner:
        yield runner.get_loop()


def on(loop: TurnedLoop, function: Any, *args: Any) -> Any:
    """Call a function while the loop runs."""

    async def call() -> Any:
        return function(*args)

    return loop.run_until_complete(call())


def test_calls_are_made_in_the_order_of_their_times(loop: TurnedLoop) -> None:
    timers, made = Timers(), list[str]()
    for delay_s, name in ((3.0, "c"), (1.0, "a"), (2.0, "b"), (1.0, "a too")):
        on(loop, timers.call_later, delay_s, made.append, name)
    loop.now = 1.5
    loop.settle()
    assert made == ["a", "a too"]
    loop.now = 10.0
    loop.settle()
    assert made == ["a", "a too", "b", "c"]
    assert len(timers) == 0


def test_a_cancelled_call_is_not_made_and_cancelling_again_is_harmless(loop: TurnedLoop) -> None:
    timers, made = Timers(), list[str]()
    first = on(loop, timers.call_later, 1.0, made.append, "first")
    second = on(loop, timers.call_later, 2.0, made.append, "second")
    first.cancel()
    first.cancel()
    assert (first.active, second.active, len(timers)) == (False, True, 1)
    loop.now = 5.0
    loop.settle()
    second.cancel()
    assert made == ["second"]
    assert len(timers) == timers.cancelled == 0


def test_an_earlier_timer_does_not_wait_for_a_later_one_that_came_first(loop: TurnedLoop) -> None:
    timers, made = Timers(), list[str]()
    on(loop, timers.call_later, 86_400.0, made.append, "a day")
    on(loop, timers.call_later, 1.0, made.append, "a second")
    loop.now = 1.0
    loop.settle()
    assert made == ["a second"]


def test_a_call_that_raises_delays_none_behind_it(loop: TurnedLoop) -> None:
    timers, made, errors = Timers(), list[str](), list[Any]()
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))

    def fail(text: str) -> None:
        raise ValueError(text)

    on(loop, timers.call_later, 1.0, fail, "of its own")
    on(loop, timers.call_later, 1.0, made.append, "behind")
    loop.now = 1.0
    loop.settle()
    assert made == ["behind"]
    assert [str(error) for error in errors] == ["of its own"]


def test_memory_follows_the_timers_that_are_left(loop: TurnedLoop) -> None:
    timers = Timers()
    kept = on(loop, timers.call_later, 50.0, print, "kept")
    for _ in range(10_000):
        on(loop, timers.call_later, 100.0, print, "gone").cancel()
    assert len(timers) == 1
    assert len(timers._heap) <= 2 * COMPACT_ABOVE + 3
    assert kept.active


def test_after_closing_no_call_is_made(loop: TurnedLoop) -> None:
    timers, made = Timers(), list[str]()
    on(loop, timers.call_later, 1.0, made.append, "never")
    timers.close()
    loop.now = 5.0
    loop.settle()
    assert made == []
