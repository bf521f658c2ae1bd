"""What a trace shows of a job that came over HTTP: its way, its downloads, its webhook; nothing of what was sent."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aiservices.handler import Context
from aiservices.registry import Registry
from aiservices.settings import Config, FetchConfig, ServerConfig, ServiceConfig, WebhookConfig
from aiservices.transports.http import create_app
from aiservices.transports.http.lookup import REGISTRY
from tests.fakes import TextInput, TextOutput, Upper
from tests.test_spans import CALLERS, PARENT, provide
from tests.transports.http.apps import Client, MakeClient, read, until

PNG = b"\x89PNG\r\n\x1a\n"


class Looking(Upper):
    """Downloads what its text names before it works, and shapes its output."""

    async def preprocess(self, input: TextInput, context: Context) -> TextInput:
        await context.fetch(input.text, field="$.text", kind="image")
        return input

    def postprocess(self, result: TextOutput) -> TextOutput:
        return TextOutput("seen")


class Site:
    """A server of the caller: a picture, and a receiver of webhooks that fails first."""

    def __init__(self) -> None:
        self.parents: dict[str, list[str]] = {}
        self.statuses = [500, 200]

    async def picture(self, request: web.Request) -> web.Response:
        self._note(request)
        return web.Response(body=PNG + bytes(100))

    async def missing(self, request: web.Request) -> web.Response:
        self._note(request)
        return web.Response(status=404)

    async def done(self, request: web.Request) -> web.Response:
        self._note(request)
        await request.read()
        return web.Response(status=self.statuses.pop(0))

    def _note(self, request: web.Request) -> None:
        self.parents.setdefault(request.path, []).append(request.headers["traceparent"])


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    return provide(monkeypatch)


@pytest.fixture
async def site() -> Any:
    site, app = Site(), web.Application()
    app.add_routes([web.get("/mug.png", site.picture), web.get("/no.png", site.missing), web.post("/done", site.done)])
    async with TestServer(app) as server:
        yield site, server


def make_client(aiohttp_client: MakeClient, port: int | None) -> Any:
    config = Config(
        server=ServerConfig(grace_s=0.0),
        fetch=FetchConfig(allow_hosts=(f"127.0.0.1:{port}",)),
        webhook=WebhookConfig(attempts=2, retry_wait_s=0.0),
        services={"look": ServiceConfig(name="look", handler=f"{__name__}:Looking", device="cpu")},
    )
    return aiohttp_client(create_app(Registry(config)))


async def spans_of(exporter: InMemorySpanExporter, enough: Callable[[list[ReadableSpan]], bool]) -> list[ReadableSpan]:
    await until(lambda: enough(list(exporter.get_finished_spans())))
    return sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)


def named(name: str, found: list[ReadableSpan]) -> list[ReadableSpan]:
    return [span for span in found if span.name == name]


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.span_id:016x}"


def id_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"{context.span_id:016x}"


def lasts(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


async def test_a_job_shows_its_whole_way(
    aiohttp_client: MakeClient, exporter: InMemorySpanExporter, site: tuple[Site, TestServer]
) -> None:
    client: Client = await make_client(aiohttp_client, site[1].port)
    picture, done = str(site[1].make_url("/mug.png?token=secret")), str(site[1].make_url("/done?token=secret"))
    body = {"input": {"text": picture}, "webhook": done}
    job = await read(await client.post("/v2/look/runsync", json=body, headers=CALLERS.headers()))
    assert job["status"] == "COMPLETED"
    found = await spans_of(exporter, lambda found: len(named("webhook", found)) == 2)
    (whole,) = named("job", found)
    assert (parent_of(whole), whole.kind, whole.status.is_ok) == (PARENT, otel.SpanKind.CONSUMER, True)
    assert dict(whole.attributes or {}) == {
        "aiservices.service": "look",
        "aiservices.job.id": job["id"],
        "aiservices.job.attempt": 1,
        "aiservices.job.status": "COMPLETED",
        "aiservices.job.reason": "completed",
    }
    below = [span for span in found if span is not whole]
    assert {parent_of(span) for span in below} == {id_of(whole)}
    parts = [span for span in below if span.kind is otel.SpanKind.INTERNAL]
    assert [span.name for span in parts] == ["waiting", "preparing", "waiting", "model", "finishing"]
    times = [lasts(span) for span in parts]
    begin, end = lasts(whole)
    assert all(abs(one[1] - next[0]) < 1000 for one, next in itertools.pairwise(times))
    assert (abs(times[0][0] - begin) < 1_000_000, abs(times[-1][1] - end) < 1_000_000) == (True, True)
    assert dict(parts[3].attributes or {}) == {"aiservices.batch.size": 1}
    assert [sent.split("-")[2] for sent in site[0].parents["/mug.png"]] == [
        id_of(each) for each in named("fetch", found)
    ]
    assert [sent.split("-")[2] for sent in site[0].parents["/done"]] == [
        id_of(each) for each in named("webhook", found)
    ]
    first, second = named("webhook", found)
    assert (first.status.is_ok, second.status.is_ok) == (False, True)
    assert [(span.attributes or {})["http.request.resend_count"] for span in (first, second)] == [0, 1]
    assert "secret" not in "".join(span.to_json() for span in found)


async def test_a_job_that_fails_says_why_in_a_word(
    aiohttp_client: MakeClient, exporter: InMemorySpanExporter, site: tuple[Site, TestServer]
) -> None:
    client: Client = await make_client(aiohttp_client, site[1].port)
    body = {"input": {"text": str(site[1].make_url("/no.png"))}}
    job = await read(await client.post("/v2/look/runsync", json=body))
    assert job["status"] == "FAILED"
    (whole,) = named("job", found := await spans_of(exporter, lambda found: bool(named("job", found))))
    own = own_trace(job["id"])
    context = whole.get_span_context()
    assert context is not None
    assert (f"{context.trace_id:032x}", parent_of(whole)) == own
    assert ((whole.attributes or {})["error.type"], whole.status.is_ok) == ("fetch_failed", False)
    assert [span.name for span in found if span.kind is otel.SpanKind.INTERNAL] == ["waiting", "preparing"]
    (fetch,) = named("fetch", found)
    assert (fetch.attributes or {})["error.type"] == "status"
    counted = client.app[REGISTRY].metrics.render()[0].decode() if client.app else ""
    assert 'aiservices_fetches_total{result="status"} 1.0' in counted
    assert 'aiservices_jobs_total{reason="fetch_failed",service="look",status="FAILED"} 1.0' in counted


async def test_each_attempt_has_a_span_of_its_own(
    aiohttp_client: MakeClient, exporter: InMemorySpanExporter, site: tuple[Site, TestServer]
) -> None:
    client: Client = await make_client(aiohttp_client, site[1].port)
    body = {"input": {"text": str(site[1].make_url("/no.png"))}}
    job = await read(await client.post("/v2/look/runsync", json=body, headers=CALLERS.headers()))
    await client.post(f"/v2/look/retry/{job['id']}")
    found = named("job", await spans_of(exporter, lambda found: len(named("job", found)) == 2))
    assert [(span.attributes or {})["aiservices.job.attempt"] for span in found] == [1, 2]
    assert [parent_of(span) for span in found] == [PARENT] * 2


def own_trace(job_id: str) -> tuple[str, str]:
    """The trace that a job's id tells, and the place in it that no span has."""
    digits = job_id.replace("-", "")
    return digits, digits[:16]
