"""The real worker process: ``python -m aiservices runpod`` against a control plane on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.transports.runpod.control_plane import ControlPlane

ROOT = Path(__file__).resolve().parents[3]


class Process:
    """The worker and what it printed."""

    def __init__(self, process: asyncio.subprocess.Process, plane: ControlPlane, log: Path) -> None:
        self.plane = plane
        self._process = process
        self._log = log

    def terminate(self) -> None:
        self._process.terminate()

    async def ended(self) -> int:
        """Wait for its end; return the exit code."""
        async with asyncio.timeout(40):
            return await self._process.wait()

    def printed(self) -> str:
        return self._log.read_text()

    async def says(self, words: str) -> None:
        """Wait until it has printed these words."""
        async with asyncio.timeout(40):
            while words not in self.printed():  # noqa: ASYNC110  (another process writes it)
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its ping process, too
        await self._process.wait()


@asynccontextmanager
async def working(
    folder: Path, services: Mapping[str, Mapping[str, Any]], *arguments: str, grace_s: float = 20, **environment: str
) -> AsyncIterator[Process]:
    """Run a worker with these services until the end of the block."""
    pytest.importorskip("runpod", reason="pip install runpod (the runpod extra)")
    plane = ControlPlane()
    await plane.start()
    settings = folder / "services.toml"
    settings.write_text(_toml(services, grace_s))
    log = folder / "worker.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aiservices", "runpod", "--config", str(settings), *arguments),
            cwd=ROOT,
            env={**os.environ, **plane.environment(), **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    worker = Process(process, plane, log)
    try:
        yield worker
    finally:
        await worker.kill()
        await plane.close()


def _toml(services: Mapping[str, Mapping[str, Any]], grace_s: float) -> str:
    lines = ["[server]", 'profile = "test"', f"grace_s = {grace_s}"]
    for name, settings in services.items():
        lines += [f"[services.{name}]", 'device = "cpu"', *(f"{key} = {_value(v)}" for key, v in settings.items())]
    lines += [f"[profiles.test.services.{name}]" for name in services]
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)
