"""RunPod's unmodified JavaScript client, the npm package ``runpod-sdk``, makes every call it has."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aiservices.settings import ServerConfig
from aiservices.transports.http.lookup import REGISTRY
from tests.fakes import Counting, Gated, Upper
from tests.transports.http.apps import Client, MakeClient, handler_of, make_app, wait_until

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "npm"
INSTALL_LIMIT_S = 50


@pytest.fixture(scope="session")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs Node.js: install node and npm")
    folder = tmp_path_factory.mktemp("npm")
    for file in HERE.iterdir():
        shutil.copy(file, folder)
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=INSTALL_LIMIT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"needs the npm package runpod-sdk, which npm could not install: {error}")
    return folder


async def make(sdk: Path, client: Client, *calls: list[Any], key: str = "any") -> list[dict[str, Any]]:
    """Have the client make these calls, one after the other; return what each brought."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "node", "calls.mjs", str(client.make_url("/v2")), key, cwd=sdk, stdin=pipe, stdout=pipe, stderr=pipe
    )
    output, errors = await process.communicate(json.dumps(calls).encode())
    assert process.returncode == 0, errors.decode()
    results: list[dict[str, Any]] = json.loads(output)
    return results


async def test_success_in_every_way(sdk: Path, aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, Counting))
    given = {"input": {"text": "mug"}}
    at_once, accepted, ended, asked, counted, chunks, health, purged = await make(
        sdk,
        client,
        ["upper", "runSync", given],
        ["upper", "run", given],
        ["upper", "statusSync", "$1"],
        ["upper", "status", "$1"],
        ["counting", "run", {"input": {"text": "c", "count": 4}}],
        ["counting", "stream", "$4"],
        ["upper", "health"],
        ["upper", "purgeQueue"],
    )
    for result in (at_once, ended, asked):
        shown = result["returned"]
        assert (shown["status"], shown["output"]) == ("COMPLETED", {"text": "MUG"})
        assert (shown["started"], shown["completed"], shown["succeeded"]) == (True, True, True)
    assert accepted["returned"]["status"] == "IN_QUEUE"
    assert counted["returned"]["id"]
    assert chunks["returned"] == [{"output": n} for n in (1, 2, 3, 4)]
    assert health["returned"]["jobs"]["completed"] == 2
    assert purged["returned"] == {"removed": 0, "status": "completed"}


async def test_failure_is_an_answer(sdk: Path, aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    (failed,) = await make(sdk, client, ["upper", "runSync", {"input": {"text": "fail"}}])
    shown = failed["returned"]
    assert (shown["status"], shown["completed"], shown["succeeded"]) == ("FAILED", True, False)
    assert shown["error"].startswith("internal error")


async def test_cancel(sdk: Path, aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Gated))
    _, cancelled, status, stream = await make(
        sdk,
        client,
        ["gated", "run", {"input": {"text": "a"}}],
        ["gated", "cancel", "$0"],
        ["gated", "status", "$0"],
        ["gated", "stream", "$0"],
    )
    assert cancelled["returned"]["status"] == "CANCELLED"
    assert (status["returned"]["status"], status["returned"]["completed"]) == ("CANCELLED", True)
    assert stream["returned"] == []
    handler_of(client, Gated).gate.set()


async def test_a_job_that_takes_too_long(sdk: Path, aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Gated, timeout_s=0.1))
    (ended,) = await make(sdk, client, ["gated", "runSync", {"input": {"text": "a"}}])
    assert ended["returned"]["status"] == "TIMED_OUT"
    assert ended["returned"]["error"] == "execution timed out after 0.1 s"
    handler_of(client, Gated).gate.set()


async def test_a_client_that_waits_no_longer(sdk: Path, aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Gated))
    _, waited = await make(
        sdk, client, ["gated", "run", {"input": {"text": "a"}}], ["gated", "statusSync", "$0", 1000]
    )  # fmt: skip
    assert waited["returned"]["completed"] is False
    handler_of(client, Gated).gate.set()


async def test_unknown_service_and_job(sdk: Path, aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    service, job, wrong = await make(
        sdk,
        client,
        ["uper", "run", {"input": {"text": "a"}}],
        ["upper", "status", "no-such-job"],
        ["upper", "run", {"input": {}}],
    )
    assert (service["status"], service["data"]["services"]) == (404, ["upper"])
    assert (job["status"], job["data"]["error"]) == (404, "job not found or expired")
    assert (wrong["status"], wrong["data"]["error"]) == (400, "$.text: this field is required")


async def test_a_wrong_key(sdk: Path, aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, server=ServerConfig(api_keys=("right",), grace_s=0.0)))
    given = ["upper", "runSync", {"input": {"text": "a"}}]
    assert (await make(sdk, client, given, key="wrong"))[0]["status"] == 401
    assert (await make(sdk, client, given, key="right"))[0]["returned"]["output"] == {"text": "A"}


async def test_a_full_queue(sdk: Path, aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Gated, queue_size=1, max_batch_size=1, prefetch=1))
    await client.post("/v2/gated/run", json={"input": {"text": "a"}})
    await wait_until(handler_of(client, Gated).entered)
    given = ["gated", "run", {"input": {"text": "b"}}]
    _, full = await make(sdk, client, given, given)
    assert (full["status"], full["data"]["error"]) == (429, "the queue is full (1 jobs)")
    handler_of(client, Gated).gate.set()


async def test_draining(sdk: Path, aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    assert client.app is not None
    await client.app[REGISTRY].drain(0.0)
    refused, health = await make(sdk, client, ["upper", "run", {"input": {"text": "a"}}], ["upper", "health"])
    assert (refused["status"], refused["data"]["error"]) == (503, "the server is shutting down")
    assert health["returned"]["jobs"]["inQueue"] == 0
