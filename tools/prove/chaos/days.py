"""The bad days: what goes wrong, for how long, and what it takes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import attrs

from tools.serving import Server

DISK_MIB = 8
"""Of the small disk that fills up."""

TROUBLED = 0.1
"""Part of the jobs that get into the day's trouble."""


@attrs.frozen
class Day:
    """One kind of bad day.

    Attributes:
        trouble: what part of the jobs gets into, in the model.
        strikes: what happens to the process or its disk while jobs come.
        hook: which receiver webhooks go to: ``good``, ``closed`` or ``silent``.
        bucket: whether outputs go to a store that does not answer.
        small_disk: whether the journal lies on a disk that can be filled.
    """

    trouble: str = "none"
    strikes: Callable[[Server, Path, random.Random], Coroutine[Any, Any, None]] | None = None
    hook: str = "good"
    bucket: bool = False
    small_disk: bool = False


async def fill_disk(server: Server, folder: Path, chance: random.Random) -> None:
    """Fill the journal's disk for a while."""
    ballast = folder / "ballast"
    await asyncio.sleep(chance.uniform(0.0, 0.5))
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        for _ in range(DISK_MIB * 256):
            os.write(file.fileno(), bytes(4096))
    await asyncio.sleep(chance.uniform(0.1, 1.0))
    ballast.unlink()


async def ask_to_stop(server: Server, folder: Path, chance: random.Random) -> None:
    """Send SIGTERM at a random moment."""
    await asyncio.sleep(chance.uniform(0.0, 1.0))
    with contextlib.suppress(ProcessLookupError):
        server.process.terminate()


async def kill(server: Server, folder: Path, chance: random.Random) -> None:
    """Send SIGKILL at a random moment."""
    await asyncio.sleep(chance.uniform(0.0, 1.0))
    with contextlib.suppress(ProcessLookupError):
        server.process.kill()


DAYS = {
    "out of memory": Day(trouble="memory"),
    "hang": Day(trouble="hang"),
    "thread told to end": Day(trouble="thread"),
    "crash": Day(trouble="crash"),
    "full disk": Day(strikes=fill_disk, small_disk=True),
    "closed webhook": Day(hook="closed"),
    "silent webhook": Day(hook="silent"),
    "dead store": Day(bucket=True),
    "SIGTERM": Day(strikes=ask_to_stop),
    "SIGKILL": Day(strikes=kill),
}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk of :data:`DISK_MIB` there; needs the right to."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def may_mount() -> bool:
    """Whether this process may mount a disk."""
    return os.geteuid() == 0
