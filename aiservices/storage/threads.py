"""Blocking work beside the event loop that nobody has to wait for at the end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any, ParamSpec, TypeVar

from aiservices.loops import LoopThread

T = TypeVar("T")
P = ParamSpec("P")


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a thread of its own.

    The thread is a daemon: a process that is told to stop does not wait for the end of a download, as it would with
    the threads of :func:`asyncio.to_thread`.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            settle = partial(future.set_result, function(*args, **kwargs))
        except BaseException as error:
            settle = partial(future.set_exception, error)
        # Whoever waited may have been cancelled meanwhile; then the answer has no taker.
        with contextlib.suppress(InvalidStateError):
            settle()

    threading.Thread(target=work, name=f"storage-{function.__name__}", daemon=True).start()
    return await asyncio.wrap_future(future)


async def on_own_loop(work: Coroutine[Any, Any, T]) -> T:
    """Await work on an event loop of its own, in a thread: thousands of requests must not slow ours down."""
    own = LoopThread("storage")
    try:
        return await own.run(work)
    finally:
        own.close()
