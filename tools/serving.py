"""A server in a process of its own, for proofs and tests."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import attrs

ROOT = Path(__file__).parent.parent
SERVE = ("-m", "aiservices", "serve")
_STARTED = b"try the services"


class NotStarted(Exception):
    """The process ended before it served.

    Args:
        status: its exit status; minus the signal that killed it.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"the server ended with status {status}")
        self.status = status


@attrs.frozen
class Server:
    """A running server."""

    url: str
    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    async def stop(self) -> int:
        """Ask it to end, as a supervisor does; return its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await _ended(self.process)

    async def kill(self) -> None:
        """End it at once, as ``kill -9`` or the system's want of memory does."""
        if self.process.returncode is None:
            self.process.kill()
        await _ended(self.process)

    def peak_bytes(self) -> int:
        """Most resident memory since :meth:`forget_peak`."""
        return self._memory("VmHWM")

    def resident_bytes(self) -> int:
        """Resident memory now."""
        return self._memory("VmRSS")

    def forget_peak(self) -> None:
        """Count the peak from now on."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5", encoding="ascii")

    def _memory(self, name: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"{name}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


async def start(
    settings: Path,
    *,
    command: Sequence[str] = SERVE,
    environ: Mapping[str, str] | None = None,
    log: IO[bytes] | int = subprocess.DEVNULL,
) -> Server:
    """Start a server and return once it takes jobs; settings in the environment do not reach it.

    Args:
        settings: its ``services.toml``, with ``port = 0``.
        command: arguments of Python that take those of ``serve``.
        environ: variables beside the process's own.
        log: what its log is written to.

    Raises:
        NotStarted: it ended instead.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command, "--config", str(settings)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**_environment(), "OMP_NUM_THREADS": "1", **(environ or {})},
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            if _STARTED in line:
                return Server(line.decode().split()[0].rstrip("/"), process)
        raise NotStarted(await _ended(process))
    except BaseException:
        if process.returncode is None:
            process.kill()
            await _ended(process)
        raise


@asynccontextmanager
async def serving(settings: Path) -> AsyncIterator[Server]:
    """Serve until the block is left; the server has to end well then."""
    server = await start(settings)
    try:
        yield server
        status = await server.stop()
        assert status == 0, f"the server ended with status {status}"
    finally:
        await server.kill()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("AISERVICES_")}


async def _ended(process: asyncio.subprocess.Process) -> int:
    await process.communicate()
    assert process.returncode is not None
    return process.returncode
