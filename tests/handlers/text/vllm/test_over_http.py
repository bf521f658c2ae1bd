"""A server whose text services run on vLLM, seen from outside: clients, cancel, priority, drain, a crash."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import aiservices
from tests.handlers.test_qwen import picture
from tests.handlers.text.vllm.conftest import REAL
from tests.transports.http.test_runpod_client import runpod
from tools.serving import Server, start

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not REAL, reason="needs vllm in a server's process: scripts/test --vllm"),
]

DEMO = Path(aiservices.__file__).parent / "demo"
EXIT_BROKEN = 3

SETTINGS = """
[server]
profile = "vllm"
port = 0
grace_s = 60
model_dir = "{folder}/models"
[services.describe]
handler = "aiservices.handlers.qwen:DescribeImage"
model = "{demo}/qwen2.5-vl"
device = "cpu"
max_batch_size = 16
[services.describe.options]
engine = "vllm"
dtype = "float32"
cache_gib = 0.125
[services.listing]
handler = "aiservices.handlers.mistral:GenerateDescription"
model = "{demo}/mistral"
device = "cpu"
max_batch_size = 16
[services.listing.options]
engine = "vllm"
dtype = "float32"
cache_gib = 0.125
[profiles.vllm.services.describe]
[profiles.vllm.services.listing]
"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    settings = tmp_path / "services.toml"
    settings.write_text(SETTINGS.format(demo=DEMO, folder=tmp_path))
    server = await start(settings, environ={"AISERVICES_JOURNAL_PATH": "off"})
    yield server
    await server.kill()


async def ready(session: aiohttp.ClientSession, server: Server) -> None:
    for _ in range(1200):
        async with session.get(f"{server.url}/readyz") as response:
            if response.status == 200:
                return
        await asyncio.sleep(0.2)
    raise AssertionError("the server never became ready")


async def post(session: aiohttp.ClientSession, url: str, body: Any) -> Any:
    async with session.post(url, json=body) as response:
        return await response.json()


async def get(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as response:
        return await response.json()


async def ended(session: aiohttp.ClientSession, url: str) -> Any:
    for _ in range(2000):
        status = await get(session, url)
        if status["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
            return status
        await asyncio.sleep(0.02)
    raise AssertionError("the job never ended")


def engines(pid: int) -> list[int]:
    """Process ids of a server's engines, and of what they started."""
    found = []
    for process in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(process.read_text().rpartition(")")[2].split()[1])
            name = process.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"EngineCore" in name:
            found.append(int(process.parent.name))
    return found


def is_there(pid: int) -> bool:
    """Whether a process lives."""
    return Path(f"/proc/{pid}").exists()


LISTING = {"input": {"image_description": "A small striped red mug on a white background."}}


async def test_clients_cancel_priority_and_a_drain(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    image = "data:image/png;base64," + base64.b64encode(picture(3, (160, 120))).decode()
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{server.url}/v2")
    async with aiohttp.ClientSession() as session:
        await ready(session, server)

        def use() -> tuple[Any, Any, Any]:
            describe, listing = (runpod.Endpoint(name, api_key="any") for name in ("describe", "listing"))
            job = describe.run({"image_url": image})
            streamed = listing.run(LISTING["input"])
            return job.output(timeout=60), listing.run_sync(LISTING["input"], timeout=60), list(streamed.stream())

        described, listed, streamed = await asyncio.to_thread(use)
        assert described["finish_reason"] == "stop"
        assert listed["category"] == "Home & Kitchen"
        assert "".join(streamed).startswith('{"title":"')

        base = f"{server.url}/describe/api/v1"
        forever = {"input": {"image_url": image, "max_new_tokens": 512, "temperature": 2.0, "prompt": "Sing"}}
        companions = [await post(session, f"{server.url}/listing/api/v1/run", LISTING) for _ in range(8)]
        cancelled = await post(session, f"{base}/run", forever)
        await post(session, f"{base}/cancel/{cancelled['id']}", None)
        assert (await ended(session, f"{base}/status/{cancelled['id']}"))["status"] == "CANCELLED"
        for companion in companions:
            status = await ended(session, f"{server.url}/listing/api/v1/status/{companion['id']}")
            assert status["status"] == "COMPLETED"
            assert status["output"]["title"] == listed["title"]

        last = await post(session, f"{server.url}/listing/api/v1/run", {**LISTING, "policy": {"lowPriority": True}})
        waiting = asyncio.create_task(ended(session, f"{server.url}/listing/api/v1/status/{last['id']}"))
        assert (await waiting)["status"] == "COMPLETED"
        children = engines(server.pid)
        assert len(children) == 2
    assert await server.stop() == 0
    assert not any(map(is_there, children))


async def test_a_killed_engine_fails_its_service_with_the_reason_and_ends_the_process(server: Server) -> None:
    async with aiohttp.ClientSession() as session:
        await ready(session, server)
        children = engines(server.pid)
        os.kill(children[0], signal.SIGKILL)
        os.kill(children[1], signal.SIGKILL)
        job = await post(session, f"{server.url}/listing/api/v1/runsync", LISTING)
    assert job["status"] == "FAILED"
    assert "the engine's process ended" in str(job["error"])
    assert await asyncio.wait_for(server.process.wait(), 60) == EXIT_BROKEN


async def test_an_engine_ends_with_a_server_that_was_killed(server: Server) -> None:
    async with aiohttp.ClientSession() as session:
        await ready(session, server)
    children = engines(server.pid)
    assert children
    await server.kill()
    for _ in range(500):
        if not any(map(is_there, children)):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("an engine outlives its server")
