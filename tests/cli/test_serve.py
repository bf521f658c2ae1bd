"""``serve``: ports, URLs, and how signals and a broken device end it."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aiservices.cli import Exit
from aiservices.cli.serve import bind, serve
from aiservices.errors import ModelBroken, ServiceError
from aiservices.handler import Task
from aiservices.settings import Config, ServerConfig, ServiceConfig
from tests.cli.conftest import ROOT, Cli, until
from tests.fakes import TextInput, TextOutput, Upper


class BreaksDown(Upper):
    """Loses its device with the first job."""

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextOutput | Exception]:
        raise ModelBroken("the device is gone")


class CannotLoad(Upper):
    """Finds no weights."""

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        raise ServiceError("no weights")


class Server:
    """A server in this loop: its lines, its address, the exit codes that it was to leave with."""

    def __init__(self, handler: str = "aiservices.handlers.echo:Echo", *, host: str = "127.0.0.1") -> None:
        service = ServiceConfig(name="echo", handler=handler, device="cpu")
        settings = ServerConfig(host=host, port=0, grace_s=20)
        self.config = Config(server=settings, profile="test", services={"echo": service}, profiles=("test",))
        self.lines: list[str] = []
        self.left: asyncio.Queue[int] = asyncio.Queue()
        self.ready, self.told = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(serve(self.config, say=self._say, leave=self.left.put_nowait))

    def _say(self, line: str) -> None:
        self.lines.append(line)
        if line.endswith("/run"):
            self.ready.set()
        if line.partition(" in ")[0].endswith("ready"):
            self.told.set()

    @property
    def url(self) -> str:
        (line,) = (line for line in self.lines if line.endswith("/run"))
        return line.strip().removesuffix("/run")

    async def draining(self, session: aiohttp.ClientSession) -> None:
        """Wait until the signal has arrived."""
        shown = {"draining": False}
        while not shown["draining"]:
            async with session.get(self.lines[1].split()[0] + "readyz") as answer:
                shown = await answer.json()

    async def post(self, session: aiohttp.ClientSession, path: str, **body: Any) -> tuple[int, Any]:
        async with session.post(self.url + path, json=body) as answer:
            return answer.status, await answer.json()


async def test_serve_listens_at_once_and_names_every_url() -> None:
    server = Server()
    await server.ready.wait()
    async with aiohttp.ClientSession() as session:
        status, answer = await server.post(session, "/runsync", input={"text": "hi"})
        assert (status, answer["output"]["text"]) == (200, "hi")
    port = server.url.split(":")[2].split("/")[0]
    assert [line.split()[0] for line in server.lines[1:4]] == [
        f"http://127.0.0.1:{port}/",
        f"http://127.0.0.1:{port}/openapi.json",
        f"http://127.0.0.1:{port}/echo/api/v1/run",
    ]
    signal.raise_signal(signal.SIGINT)
    assert await server.task is Exit.OK


async def test_serve_says_when_every_service_is_ready_and_where() -> None:
    server = Server()
    await server.told.wait()
    *_, state, total = server.lines
    assert state == "  ready    echo"
    assert re.fullmatch(r"ready in \d+\.\d s: http://127\.0\.0\.1:\d+/", total)
    assert not any(line.startswith("warning") for line in server.lines)
    signal.raise_signal(signal.SIGINT)
    assert await server.task is Exit.OK


async def test_serve_says_which_service_failed_and_why_and_that_anyone_may_call() -> None:
    server = Server("tests.cli.test_serve:CannotLoad", host="0.0.0.0")
    await server.told.wait()
    assert "  FAILED   echo: the model could not be loaded: no weights" in server.lines
    assert re.match(r"0 of 1 services ready in \d", server.lines[-1])
    assert any(line.startswith("warning: whoever reaches 0.0.0.0:0 may call: no keys are set") for line in server.lines)
    signal.raise_signal(signal.SIGINT)
    assert await server.task is Exit.OK


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "http://127.0.0.1:"), ("localhost", "http://localhost:"), ("::1", "http://[::1]:")]
)
async def test_the_urls_can_be_clicked_whatever_the_host(host: str, shown: str) -> None:
    server = Server(host=host)
    await server.ready.wait()
    assert server.url.startswith(shown)
    signal.raise_signal(signal.SIGTERM)
    assert await server.task is Exit.OK


async def test_after_the_first_signal_running_jobs_end_and_new_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiservices.cli.serve.LINGER_S", 0.5)
    server = Server()
    await server.ready.wait()
    async with aiohttp.ClientSession() as session:
        _, job = await server.post(session, "/run", input={"text": "hi", "seconds": 0.5})
        signal.raise_signal(signal.SIGTERM)
        await server.draining(session)
        status, refusal = await server.post(session, "/run", input={"text": "too late"})
        assert (status, refusal["error"]) == (503, "the server is shutting down")
        async with session.get(f"{server.url}/status-sync/{job['id']}") as answer:
            assert (await answer.json())["status"] == "COMPLETED"
        await asyncio.sleep(0.1)  # a caller that polls comes later, and still finds the result
        async with session.get(f"{server.url}/status/{job['id']}") as answer:
            assert (await answer.json())["status"] == "COMPLETED"
    assert await server.task is Exit.OK
    assert server.left.empty()


async def test_the_second_signal_leaves_at_once() -> None:
    server = Server()
    await server.ready.wait()
    async with aiohttp.ClientSession() as session:
        await server.post(session, "/run", input={"text": "hi", "seconds": 60})
        signal.raise_signal(signal.SIGTERM)
        await server.draining(session)
        signal.raise_signal(signal.SIGTERM)
        assert await server.left.get() == 128 + signal.SIGTERM
    server.task.cancel()
    await asyncio.gather(server.task, return_exceptions=True)


async def test_a_broken_device_ends_the_process_with_a_code_of_its_own() -> None:
    server = Server("tests.cli.test_serve:BreaksDown")
    await server.ready.wait()
    async with aiohttp.ClientSession() as session:
        _, answer = await server.post(session, "/runsync", input={"text": "hi"})
        assert (answer["status"], answer["error"]) == ("FAILED", "the device is gone")
    assert await server.task is Exit.BROKEN


async def test_a_caller_that_hangs_up_cancels_nothing() -> None:
    server = Server()
    await server.ready.wait()
    async with aiohttp.ClientSession() as session:
        _, job = await server.post(session, "/run", input={"text": "hi", "seconds": 0.3})
        with pytest.raises(TimeoutError):
            async with session.get(f"{server.url}/status-sync/{job['id']}", timeout=aiohttp.ClientTimeout(0.05)):
                pass
        async with session.get(f"{server.url}/status-sync/{job['id']}") as answer:
            assert (await answer.json())["status"] == "COMPLETED"
    signal.raise_signal(signal.SIGTERM)
    await server.task


def test_an_address_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: Address already in use; stop"):
            bind("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_one_line() -> None:
    with pytest.raises(ServiceError, match=r"^cannot listen on 192\.0\.2\.1:8001: Cannot assign requested address$"):
        bind("192.0.2.1", 8001)


def test_a_host_without_an_address_is_one_line() -> None:
    with pytest.raises(ServiceError, match=r"^cannot listen on no\.such\.host\.invalid:8001: "):
        bind("no.such.host.invalid", 8001)


def test_nothing_is_loaded_where_the_address_is_taken(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiservices.cli.serve.configure_logging", lambda *arguments: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, err = cli("serve", "--host", "127.0.0.1", "--port", str(taken.getsockname()[1]))
    assert (code, out) == (Exit.FAILED, "")
    assert "Address already in use; stop what listens there or choose another with --port" in err


def test_the_process_drains_on_sigterm_and_exits_with_zero() -> None:
    command = [sys.executable, "-m", "aiservices", "serve", "--profile", "echo", "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        until(process.stdout, "/echo/api/v1/run")
        process.terminate()
        _, log = process.communicate()
    assert process.returncode == Exit.OK
    assert "server.draining" in log
    assert "Traceback" not in log
