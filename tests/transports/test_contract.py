"""What a caller sends and gets is the same on every transport: one suite, each test on both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import attrs
import pytest
from aiohttp.test_utils import TestClient, TestServer

from aiservices.handlers.echo import Echo
from aiservices.registry import Registry
from aiservices.settings import Config, ServerConfig, ServiceConfig
from aiservices.transports.http import create_app
from aiservices.transports.runpod import RunPodAdapter
from tests.fakes import Counting, Gated, Unloadable, Upper

LIMIT_S = 10.0


@attrs.frozen
class Ended:
    """A job as its caller sees it in the end; without an output it has an error, or was stopped."""

    output: Any = None
    error: str | None = None


class Way(Protocol):
    """One way into a registry."""

    async def ask(self, service: str | None, given: Any, extra: dict[str, Any]) -> Ended: ...

    async def stop(self, service: str, given: Any, when: Callable[[], bool]) -> None: ...


class OverHttp:
    """The HTTP transport, by plain requests."""

    def __init__(self, client: TestClient[Any, Any], names: list[str]) -> None:
        self._client = client
        self._only = names[0]

    async def ask(self, service: str | None, given: Any, extra: dict[str, Any]) -> Ended:
        path = f"/v2/{service or self._only}/runsync"
        shown = await (await self._client.post(path, json={"input": given, **extra})).json()
        return Ended(shown.get("output"), shown.get("error"))

    async def stop(self, service: str, given: Any, when: Callable[[], bool]) -> None:
        job_id = (await (await self._client.post(f"/v2/{service}/run", json={"input": given})).json())["id"]
        await until(when)
        assert (await (await self._client.post(f"/v2/{service}/cancel/{job_id}")).json())["status"] == "CANCELLED"


class OverRunPod:
    """What RunPod's worker loop would call, called as it does: a dict in, a dict out, and a cancelled task to stop."""

    def __init__(self, adapter: RunPodAdapter) -> None:
        self._adapter = adapter
        self._count = 0

    async def ask(self, service: str | None, given: Any, extra: dict[str, Any]) -> Ended:
        answer = await self._adapter.handle(self._event(service, given, extra), lambda fraction: None)
        error = answer.pop("error", None)
        return Ended(answer or None, error)

    async def stop(self, service: str, given: Any, when: Callable[[], bool]) -> None:
        event = self._event(service, given, {})
        task = asyncio.create_task(self._adapter.handle(event, lambda fraction: None))
        await until(when)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    def _event(self, service: str | None, given: Any, extra: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        named = given if service is None or not isinstance(given, dict) else {"service": service, **given}
        return {"id": f"job-{self._count}", "input": named, **extra}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110  (what is awaited happens on another thread)
            await asyncio.sleep(0)


def make_registry(*handlers: type[Any], **settings: Any) -> Registry:
    services = {
        cls.__name__.lower(): ServiceConfig(
            name=cls.__name__.lower(), handler=f"{cls.__module__}:{cls.__name__}", device="cpu", **settings
        )
        for cls in handlers
    }
    return Registry(Config(server=ServerConfig(grace_s=0.0), profile="test", services=services))


@asynccontextmanager
async def opened(transport: str, registry: Registry) -> AsyncIterator[Way]:
    if transport == "http":
        async with TestClient(TestServer(create_app(registry))) as client:
            yield OverHttp(client, list(registry.services))
        return
    await registry.start()
    adapter = RunPodAdapter(registry)
    try:
        yield OverRunPod(adapter)
    finally:
        await adapter.close(0.0)


@pytest.fixture(params=["http", "runpod"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("service", "given", "expected"),
    [
        ("upper", {"text": "mug"}, Ended({"text": "MUG"})),
        ("upper", {"text": "mug", "count": None}, Ended({"text": "MUG"})),
        ("counting", {"text": "mug", "count": 4}, Ended({"text": "mug 4"})),
        ("echo", {"text": "mug"}, Ended({"text": "mug", "batch_size": 1})),
        ("echo", {"text": "said why", "fail": True}, Ended(error="said why")),
        ("upper", {"action": "warmup"}, Ended({"state": "READY"})),
        ("upper", {}, Ended(error="$.text: this field is required")),
        ("upper", {"input": {}}, Ended(error="$.text: this field is required")),
        ("upper", {"text": ""}, Ended(error="$.text: expected at least 1 character")),
        ("upper", {"text": 7}, Ended(error="$.text: expected str, got int")),
        ("upper", {"text": "a", "count": 0}, Ended(error="$.count: expected int >= 1")),
        ("upper", {"txt": "a"}, Ended(error="$.txt: unknown field; did you mean 'text'?")),
        ("uper", {"text": "a"}, Ended(error="no service named 'uper'; there are: upper, counting, echo")),
    ],
)
async def test_inputs_outputs_and_errors(transport: str, service: str, given: Any, expected: Ended) -> None:
    async with opened(transport, make_registry(Upper, Counting, Echo)) as way:
        assert await way.ask(service, given, {}) == expected


@pytest.mark.parametrize("given", [[], "text", 3, None])
async def test_an_input_that_is_no_object(transport: str, given: Any) -> None:
    async with opened(transport, make_registry(Upper)) as way:
        error = (await way.ask(None, given, {})).error or ""
        kind = {"list": "array", "NoneType": "null"}.get(type(given).__name__, type(given).__name__)
        assert error == f"$.input: expected object, got {kind}"


BUCKET = {"accessId": "key", "accessSecret": "secret", "bucketName": "mine", "endpointUrl": "http://10.0.0.1"}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (BUCKET, "$.s3Config.endpointUrl: points to a private address"),
        ({**BUCKET, "bucketName": "a/b"}, "$.s3Config.bucketName: expected str matching regex"),
        ({"bucketName": "mine"}, "$.s3Config.accessId: this field is required"),
        ([], "$.s3Config: expected object | null, got array"),
    ],
)
async def test_a_bucket_that_will_not_do(transport: str, given: Any, error: str) -> None:
    async with opened(transport, make_registry(Upper)) as way:
        answered = await way.ask(None, {"text": "a"}, {"s3Config": given})
        assert (answered.error or "").startswith(error)


async def test_a_single_service_need_not_be_named(transport: str) -> None:
    async with opened(transport, make_registry(Upper)) as way:
        assert await way.ask(None, {"text": "mug"}, {}) == Ended({"text": "MUG"})
        assert await way.ask(None, {"input": {}}, {}) == Ended(error="$.text: this field is required")


async def test_an_unexpected_error_shows_nothing_of_itself(transport: str) -> None:
    async with opened(transport, make_registry(Upper, Counting)) as way:
        for service, text in (
            ("upper", "fail"),
            ("upper", "explode"),
            ("counting", "bad-step"),
            ("counting", "bad-row"),
        ):
            error = (await way.ask(service, {"text": text}, {})).error or ""
            assert error.startswith("internal error (job ")


async def test_a_model_that_cannot_be_loaded_says_why(transport: str) -> None:
    async with opened(transport, make_registry(Unloadable)) as way:
        expected = Ended(error="the model could not be loaded: options: no such weights")
        assert await way.ask("unloadable", {"text": "a"}, {}) == expected
        assert await way.ask("unloadable", {"text": "a"}, {}) == expected


async def test_stopping_ends_the_very_job(transport: str) -> None:
    registry = make_registry(Gated)
    async with opened(transport, registry) as way:
        gated = registry.get("gated").handler
        assert isinstance(gated, Gated)
        await way.stop("gated", {"text": "a"}, gated.entered.is_set)
        gated.gate.set()
        assert await way.ask("gated", {"text": "b"}, {}) == Ended({"text": "B"})
        line = b'aiservices_jobs_total{reason="cancelled",service="gated",status="CANCELLED"} 1.0'
        assert registry.metrics.render()[0].count(line) == 1


async def test_a_draining_server_says_so(transport: str) -> None:
    registry = make_registry(Upper)
    async with opened(transport, registry) as way:
        await registry.drain(0.0)
        assert await way.ask("upper", {"text": "a"}, {}) == Ended(error="the server is shutting down")


async def test_a_full_queue_says_so(transport: str) -> None:
    registry = make_registry(Gated, queue_size=1, max_batch_size=1, batch_wait_s=0.0)
    async with opened(transport, registry) as way:
        gated = registry.get("gated").handler
        assert isinstance(gated, Gated)
        running = asyncio.create_task(way.ask("gated", {"text": "a"}, {}))
        await until(gated.entered.is_set)
        queued = asyncio.create_task(way.ask("gated", {"text": "b"}, {}))
        await until(lambda: registry.get("gated").health()["jobs"]["inQueue"] == 1)
        assert await way.ask("gated", {"text": "c"}, {}) == Ended(error="the queue is full (1 jobs)")
        gated.gate.set()
        assert (await running, await queued) == (Ended({"text": "A"}), Ended({"text": "B"}))
