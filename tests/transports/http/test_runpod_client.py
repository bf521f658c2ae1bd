"""The unmodified ``runpod`` Python client, sync and asyncio, against the ``/v2`` mount."""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from aiservices.settings import ServerConfig
from aiservices.transports.http.lookup import REGISTRY
from tests.fakes import Counting, Gated, Upper
from tests.transports.http.apps import Client, MakeClient, handler_of, make_app, wait_until


def _import_runpod() -> Any:
    """Import it without its ``logging.basicConfig`` and the warnings of what it imports."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pytest.importorskip("runpod", reason="pip install runpod (the runpod extra)")
    finally:
        root.handlers[:], root.level = handlers, level


runpod = _import_runpod()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client sleeps a second between two polls; here it hardly does."""
    impatient = SimpleNamespace(sleep=lambda seconds: time.sleep(0.01))
    monkeypatch.setattr("runpod.endpoint.runner.time", impatient)
    impatient = SimpleNamespace(
        sleep=lambda seconds: asyncio.sleep(0.01), wait_for=asyncio.wait_for, TimeoutError=TimeoutError
    )
    monkeypatch.setattr("runpod.endpoint.asyncio.asyncio_runner.asyncio", impatient)


@pytest.fixture
async def client(aiohttp_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> Client:
    client = await aiohttp_client(make_app(Upper, Counting, Gated))
    monkeypatch.setattr(runpod, "endpoint_url_base", str(client.make_url("/v2")))
    return client


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def endpoint(name: str) -> Any:
    return runpod.Endpoint(name, api_key="any")


@pytest.mark.usefixtures("client")
async def test_sync_run_status_and_output() -> None:
    def use() -> tuple[str, Any]:
        job = endpoint("upper").run({"text": "mug"})
        return job.job_id, (job.output(timeout=1000), job.status())

    job_id, seen = await asyncio.to_thread(use)
    assert len(job_id) == 36
    assert seen == ({"text": "MUG"}, "COMPLETED")


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("given", [{"text": "mug"}, {"input": {"text": "mug"}}])
async def test_sync_run_sync(given: dict[str, Any]) -> None:
    assert await asyncio.to_thread(lambda: endpoint("upper").run_sync(given)) == {"text": "MUG"}


@pytest.mark.usefixtures("client")
async def test_sync_stream_ends() -> None:
    def use() -> list[Any]:
        return list(endpoint("counting").run({"text": "mug", "count": 4}).stream())

    assert await asyncio.to_thread(use) == [1, 2, 3, 4]


async def test_sync_cancel_health_and_purge(client: Client) -> None:
    gated = handler_of(client, Gated)

    def use() -> Any:
        running = endpoint("gated").run({"text": "one"})
        assert gated.entered.wait(5)
        health = endpoint("gated").health()
        return health, running.cancel(), endpoint("gated").purge_queue()

    health, cancelled, purged = await asyncio.to_thread(use)
    assert health["jobs"]["inProgress"] == 1
    assert cancelled["status"] == "CANCELLED"
    assert purged == {"removed": 0, "status": "completed"}
    gated.gate.set()


async def test_sync_stream_of_a_cancelled_job_ends_with_an_error(client: Client) -> None:
    def use() -> None:
        job = endpoint("gated").run({"text": "one"})
        job.cancel()
        for _ in job.stream():
            pytest.fail("there was nothing to stream")

    with pytest.raises(Exception, match="410"):
        await asyncio.wait_for(asyncio.to_thread(use), 10)
    handler_of(client, Gated).gate.set()


@pytest.mark.usefixtures("client")
async def test_sync_failure_has_no_output() -> None:
    def use() -> Any:
        job = endpoint("upper").run({"text": "fail"})
        return job.output(timeout=1000), job.status()

    assert await asyncio.to_thread(use) == (None, "FAILED")


@pytest.mark.usefixtures("client")
async def test_sync_bad_input_and_unknown_job_are_http_errors() -> None:
    with pytest.raises(Exception, match="400"):
        await asyncio.to_thread(lambda: endpoint("upper").run({"nope": 1}))
    with pytest.raises(Exception, match="404"):
        await asyncio.to_thread(lambda: endpoint("nope").run({"text": "mug"}))


@pytest.mark.usefixtures("client")
async def test_asyncio_run_status_and_output(session: aiohttp.ClientSession) -> None:
    job = await runpod.AsyncioEndpoint("upper", session, api_key="any").run({"text": "mug"})
    assert await job.output(timeout=10) == {"text": "MUG"}
    assert await job.status() == "COMPLETED"


@pytest.mark.usefixtures("client")
async def test_asyncio_stream_ends(session: aiohttp.ClientSession) -> None:
    job = await runpod.AsyncioEndpoint("counting", session, api_key="any").run({"text": "mug", "count": 4})
    assert [chunk async for chunk in job.stream()] == [1, 2, 3, 4]


async def test_asyncio_cancel_health_purge_and_the_end_of_a_cancelled_stream(
    client: Client, session: aiohttp.ClientSession
) -> None:
    used = runpod.AsyncioEndpoint("gated", session, api_key="any")
    job = await used.run({"text": "one"})
    await wait_until(handler_of(client, Gated).entered)
    assert (await used.health())["jobs"]["inProgress"] == 1
    assert (await job.cancel())["status"] == "CANCELLED"
    assert (await used.purge_queue())["removed"] == 0
    async with asyncio.timeout(10):
        assert [chunk async for chunk in job.stream()] == []
    handler_of(client, Gated).gate.set()


@pytest.mark.usefixtures("client")
async def test_asyncio_reads_an_unknown_job_as_failed(session: aiohttp.ClientSession) -> None:
    job = runpod.AsyncioJob("upper", "nope", session, {})
    assert await job.status() == "FAILED"


@pytest.fixture
async def serve(aiohttp_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[Client]]:
    """Serve fakes with settings of the test's own, and point the client there."""

    async def start(*fakes: Any, **settings: Any) -> Client:
        client = await aiohttp_client(make_app(*fakes, **settings))
        monkeypatch.setattr(runpod, "endpoint_url_base", str(client.make_url("/v2")))
        return client

    return start


Serve = Callable[..., Awaitable[Client]]


async def test_a_job_that_takes_too_long(serve: Serve, session: aiohttp.ClientSession) -> None:
    client = await serve(Gated, timeout_s=0.1)

    def use() -> Any:
        job = endpoint("gated").run({"text": "one"})
        return job.output(timeout=1000), job.status()

    assert await asyncio.to_thread(use) == (None, "TIMED_OUT")
    job = await runpod.AsyncioEndpoint("gated", session, api_key="any").run({"text": "two"})
    handler_of(client, Gated).gate.set()
    assert await job.output(timeout=10) == {"text": "TWO"}


async def test_a_caller_that_waits_no_longer(serve: Serve, session: aiohttp.ClientSession) -> None:
    client = await serve(Gated)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(lambda: endpoint("gated").run({"text": "one"}).output(timeout=1))
    job = await runpod.AsyncioEndpoint("gated", session, api_key="any").run({"text": "two"})
    with pytest.raises(TimeoutError):
        await job.output(timeout=0.1)
    handler_of(client, Gated).gate.set()


async def test_a_wrong_key(serve: Serve, session: aiohttp.ClientSession) -> None:
    await serve(Upper, server=ServerConfig(api_keys=("right",), grace_s=0.0))
    with pytest.raises(RuntimeError, match="401 Unauthorized"):
        await asyncio.to_thread(lambda: runpod.Endpoint("upper", api_key="wrong").run_sync({"text": "a"}))
    right = runpod.Endpoint("upper", api_key="right")
    assert await asyncio.to_thread(lambda: right.run_sync({"text": "a"})) == {"text": "A"}
    with pytest.raises(KeyError):  # it never looks at the HTTP status, and the answer has no job's id
        await runpod.AsyncioEndpoint("upper", session, api_key="wrong").run({"text": "a"})


async def test_another_tenants_job(serve: Serve, tmp_path: Path) -> None:
    keys = [f"{name}-0123456789abcdef" for name in ("shop", "rival")]
    tables = [f'[tenants.{key[:5].strip("-")}.keys.one]\nkey = "{key}"\n' for key in keys]
    (tmp_path / "keys.toml").write_text("".join(tables))
    await serve(Upper, server=ServerConfig(keys_file=str(tmp_path / "keys.toml"), grace_s=0.0))
    shop, rival = (runpod.Endpoint("upper", api_key=key) for key in keys)
    job = await asyncio.to_thread(shop.run, {"text": "mug"})
    assert await asyncio.to_thread(lambda: job.output(timeout=10)) == {"text": "MUG"}
    stolen = runpod.endpoint.runner.Job("upper", job.job_id, rival.rp_client)
    with pytest.raises(Exception, match="404"):
        await asyncio.to_thread(stolen.status)
    with pytest.raises(Exception, match="404"):
        await asyncio.to_thread(stolen.cancel)


async def test_a_full_queue(serve: Serve, session: aiohttp.ClientSession) -> None:
    client = await serve(Gated, queue_size=1, max_batch_size=1, prefetch=1)
    await client.post("/v2/gated/run", json={"input": {"text": "a"}})
    await wait_until(handler_of(client, Gated).entered)
    await client.post("/v2/gated/run", json={"input": {"text": "b"}})
    with pytest.raises(Exception, match="429"):
        await asyncio.to_thread(lambda: endpoint("gated").run({"text": "c"}))
    with pytest.raises(KeyError):
        await runpod.AsyncioEndpoint("gated", session, api_key="any").run({"text": "c"})
    handler_of(client, Gated).gate.set()


async def test_draining(serve: Serve, session: aiohttp.ClientSession) -> None:
    client = await serve(Upper)
    job = await asyncio.to_thread(lambda: endpoint("upper").run({"text": "mug"}))
    assert client.app is not None
    await client.app[REGISTRY].drain(10.0)
    assert await asyncio.to_thread(lambda: job.output(timeout=10)) == {"text": "MUG"}
    with pytest.raises(Exception, match="503"):
        await asyncio.to_thread(lambda: endpoint("upper").run({"text": "late"}))
    with pytest.raises(KeyError):
        await runpod.AsyncioEndpoint("upper", session, api_key="any").run({"text": "late"})
