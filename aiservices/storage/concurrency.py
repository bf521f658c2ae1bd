"""Work beside the event loop, in threads or on a loop of its own, and many tasks at once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future, InvalidStateError
from functools import partial
from typing import Any, ParamSpec, TypeVar

from aiservices.loops import LoopThread

T = TypeVar("T")
P = ParamSpec("P")
Item = TypeVar("Item")


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
        # The caller may have been cancelled meanwhile; then nobody takes the result.
        with contextlib.suppress(InvalidStateError):
            settle()

    threading.Thread(target=work, name=f"storage-{function.__name__}", daemon=True).start()
    return await asyncio.wrap_future(future)


async def in_pool(pool: Executor, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a thread of a pool."""
    return await asyncio.get_running_loop().run_in_executor(pool, partial(function, *args, **kwargs))


async def on_own_loop(work: Coroutine[Any, Any, T]) -> T:
    """Await work on an event loop of its own, in a thread: thousands of requests must not slow down this one."""
    own = LoopThread("storage")
    try:
        return await own.run(work)
    finally:
        own.close()


async def map_concurrently(
    work: Callable[[Item], Coroutine[Any, Any, T]], items: Sequence[Item], max_concurrency: int
) -> list[T]:
    """Await work for every item, the first ones first; the first error cancels the rest.

    Args:
        max_concurrency: how many are under way at once.

    Returns:
        The results in the order of the items.

    Raises:
        ExceptionGroup: of the errors.
    """
    left = iter(enumerate(items))
    results: dict[int, T] = {}

    async def worker() -> None:
        for index, item in left:
            results[index] = await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(max_concurrency, len(items))):
            group.create_task(worker())
    return [results[index] for index in range(len(items))]
