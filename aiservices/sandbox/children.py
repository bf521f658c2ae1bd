"""A few warm processes that decode what callers send, each killed and replaced when it does not answer in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs

from aiservices.errors import InvalidInput
from aiservices.sandbox import wire

MAX_RESULT_BYTES = 256 * 1024 * 1024
"""Most that is taken from a child: a picture of 89 million pixels; a child that was taken over may send any number."""
_SOCKET_BUFFER_BYTES = 4 * 1024 * 1024
ChildFunction = Callable[..., tuple[dict[str, Any], bytes]]
"""A function of a module, called as ``function(data, **arguments)``; gives what JSON can hold, and raw bytes."""


@attrs.frozen(kw_only=True)
class Limits:
    """What one child may take.

    Attributes:
        processes: how many children.
        wall_s: longest work on one input, in seconds.
        memory_bytes: address space of a child.
    """

    processes: int
    wall_s: float
    memory_bytes: int


class ChildDied(Exception):
    """A child ended in the middle of its work.

    Args:
        status: as ``Popen.returncode``; minus a signal's number.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Children:
    """Processes that run functions on untrusted bytes. Lives on the event loop; started when first needed.

    Args:
        limits: how many, and what each may take.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(limits.processes)
        self._idle: list[_Child] = []
        self._alive: set[_Child] = set()
        # One thread a child, kept as long as the children: the system kills them when the thread that started one ends.
        self._threads = ThreadPoolExecutor(limits.processes, thread_name_prefix="child")

    async def run(
        self, function: ChildFunction, data: bytes, /, *, field: str, **arguments: Any
    ) -> tuple[dict[str, Any], bytearray]:
        """Call a function in a child.

        Args:
            function: of a module's top level or of a class there; the child imports it.
            data: what the caller sent.
            field: JSON path of the input field, for messages.
            arguments: what JSON can hold.

        Raises:
            InvalidInput: the function raised it, or took too long or too much memory, or crashed.
        """
        async with self._free:
            child = self._idle.pop() if self._idle else _Child(self._limits.memory_bytes)
            self._alive.add(child)
            try:
                header, body = await self._exchange(child, function, data, arguments | {"field": field})
            except BaseException as error:  # cancelled too: the job's end is its decoder's end
                self._end(child)
                if isinstance(error, TimeoutError | ChildDied | wire.Broken):
                    raise InvalidInput(field, self._reason(error)) from error
                raise
            self._keep(child, header)
        return self._result(header, field), body

    async def _exchange(
        self, child: _Child, function: ChildFunction, data: bytes, arguments: dict[str, Any]
    ) -> tuple[dict[str, Any], bytearray]:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, child.start)
        request = {
            "module": function.__module__,
            "function": function.__qualname__,
            "arguments": arguments,
            "cpu_s": self._limits.wall_s,
        }
        async with asyncio.timeout(self._limits.wall_s):
            return await loop.run_in_executor(self._threads, child.exchange, request, data)

    def _keep(self, child: _Child, header: dict[str, Any]) -> None:
        if "memory" in header:  # what is left of its address space may be in pieces
            self._end(child)
        else:
            self._idle.append(child)

    def _end(self, child: _Child) -> None:
        child.kill()
        self._alive.discard(child)
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._threads.submit(child.reap)  # the system takes its time to give gigabytes back

    def _result(self, header: dict[str, Any], field: str) -> dict[str, Any]:
        if "memory" in header:
            raise InvalidInput(field, "takes too much memory to decode")
        if "invalid" in header:
            raise InvalidInput(str(header.get("field", field)), str(header["invalid"]))
        if not isinstance(header.get("result"), dict):
            raise RuntimeError(f"in a child: {header.get('error')}")
        result: dict[str, Any] = header["result"]
        return result

    def _reason(self, error: Exception) -> str:
        status = error.status if isinstance(error, ChildDied) else 0
        if isinstance(error, TimeoutError) or status == -signal.SIGXCPU:
            return f"could not be decoded within {self._limits.wall_s:g} s"
        if status == -signal.SIGKILL:
            return "takes too much memory to decode"
        return "crashed the decoder"

    def close(self) -> None:
        """End every child, at once."""
        for child in self._alive:
            child.kill()
            child.reap()
        self._alive.clear()
        self._idle.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Child:
    """One process and the socket to it. ``start`` and ``exchange`` block; ``kill`` does not, and ends them."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._killed = False

    def start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._disconnect()
        self._connection, theirs = socket.socketpair()
        with theirs:
            for end in (self._connection, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "aiservices.sandbox.child", str(self._memory_bytes)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libraries write there, and the log is JSON
                env=_environment(),
            )
        if self._killed:
            self.kill()
            self.reap()

    def exchange(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytearray]:
        assert self._process is not None, "start comes first"
        assert self._connection is not None
        try:
            wire.send(self._connection, request, data)
            return wire.receive(self._connection, max_bytes=MAX_RESULT_BYTES)
        except (OSError, wire.Broken) as error:
            try:
                raise ChildDied(self._process.wait(1.0)) from error
            except subprocess.TimeoutExpired:
                raise wire.Broken("a child sent what it may not") from error

    def kill(self) -> None:
        self._killed = True
        if self._process is not None:
            self._process.kill()
        self._disconnect()

    def reap(self) -> None:
        if self._process is not None:
            self._process.wait()

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads
            self._connection.close()


def _environment() -> dict[str, str]:
    """Where modules are, and nothing else: no key or token of this process."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
