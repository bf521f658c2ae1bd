"""``serve`` while the jobs of an earlier process are restored: it listens, and says that they are not known yet."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from structlog.testing import capture_logs

from aiservices.cli import Exit
from aiservices.cli import serve as module
from aiservices.journal import JobRecord, Journal
from aiservices.logs import get_logger
from aiservices.settings import Config, ServerConfig, ServiceConfig
from tests.running import LIMIT_S, until

REASON = "the server is starting: jobs of an earlier process are being restored; try again"


class SlowJournal(Journal):
    """Is read only when the test opens the gate."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = asyncio.Event()

    async def open(self) -> list[JobRecord]:
        await self.gate.wait()
        return await super().open()


class Server:
    """A server in this loop that listens, and restores jobs once its journal's gate is open."""

    def __init__(self, journal: SlowJournal, logs: list[MutableMapping[str, Any]]) -> None:
        self.journal = journal
        self.lines: list[str] = []
        service = ServiceConfig(name="echo", handler="aiservices.handlers.echo:Echo", device="cpu")
        config = Config(server=ServerConfig(port=0), profile="test", services={"echo": service}, profiles=("test",))
        self.task = asyncio.create_task(module.serve(config, say=self.lines.append, journal=journal))
        self._logs = logs

    async def url(self) -> str:
        """Where it listens, as soon as it does."""
        await until(lambda: any(entry["event"] == "server.listening" for entry in self._logs))
        return f"http://127.0.0.1:{next(e['port'] for e in self._logs if e['event'] == 'server.listening')}"


@asynccontextmanager
async def starting(path: Path, monkeypatch: Any) -> AsyncIterator[Server]:
    with capture_logs() as logs:
        monkeypatch.setattr(module, "log", get_logger("serve"))
        server = Server(SlowJournal(path / "jobs.db"), logs)
        try:
            yield server
        finally:
            server.journal.gate.set()
            await until(lambda: bool(server.lines) or server.task.done())
            if not server.task.done():
                signal.raise_signal(signal.SIGTERM)
            assert await asyncio.wait_for(server.task, LIMIT_S) is Exit.OK


def session_of() -> aiohttp.ClientSession:
    """A client that does not wait for ever for what is answered only once the gate is open."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT_S))


async def test_a_caller_is_told_to_come_back_and_no_job_is_called_lost(tmp_path: Path, monkeypatch: Any) -> None:
    async with starting(tmp_path, monkeypatch) as server, session_of() as session:
        url = await server.url()
        for method, path in (
            ("POST", "/v2/echo/run"),
            ("GET", "/v2/echo/status/an-id"),
            ("POST", "/echo/api/v1/cancel/an-id"),
            ("GET", "/v2/echo/health"),
        ):
            async with session.request(method, url + path, json={"input": {"text": "hi"}}) as answer:
                shown = await answer.json()
            assert (answer.status, answer.headers["Retry-After"], shown["error"]) == (503, "1", REASON)
            assert "status" not in shown  # the job may be restored in a moment
        async with session.post(f"{url}/v1/audio/speech", json={"input": "hi"}) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert (await answer.json())["error"]["message"] == REASON


async def test_probes_tell_that_it_lives_and_is_not_ready(tmp_path: Path, monkeypatch: Any) -> None:
    async with starting(tmp_path, monkeypatch) as server, session_of() as session:
        url = await server.url()
        statuses = {}
        for path in ("/livez", "/readyz", "/ping"):
            async with session.get(url + path) as answer:
                statuses[path] = answer.status
                if path == "/readyz":
                    shown = await answer.json()
        assert statuses == {"/livez": 200, "/readyz": 503, "/ping": 204}
        assert (shown["ready"], shown["starting"]) == (False, True)
        assert server.lines == []


async def test_it_serves_once_they_are_restored(tmp_path: Path, monkeypatch: Any) -> None:
    async with starting(tmp_path, monkeypatch) as server, session_of() as session:
        url = await server.url()
        server.journal.gate.set()
        await until(lambda: bool(server.lines))
        async with session.post(f"{url}/v2/echo/runsync", json={"input": {"text": "hi"}}) as answer:
            assert (answer.status, (await answer.json())["output"]["text"]) == (200, "hi")
        async with session.get(f"{url}/readyz") as answer:
            assert (answer.status, (await answer.json())["starting"]) == (200, False)


async def test_a_signal_meanwhile_is_heeded_once_they_are_restored(tmp_path: Path, monkeypatch: Any) -> None:
    async with starting(tmp_path, monkeypatch) as server:
        await server.url()
        signal.raise_signal(signal.SIGTERM)
        server.journal.gate.set()
        assert await asyncio.wait_for(server.task, LIMIT_S) is Exit.OK
