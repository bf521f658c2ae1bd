"""Webhooks from the caller's request to a receiver on loopback: whatever it does, the job is what it is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from aiservices.registry import Registry
from aiservices.settings import Config, FetchConfig, ServerConfig, ServiceConfig, WebhookConfig
from aiservices.transports.http import create_app
from tests.transports.http.apps import Client, MakeClient, read

ATTEMPTS = 3


class Receiver:
    """Answers each POST with the next of its statuses; 0 hangs until the sender gives up, -1 redirects inwards."""

    def __init__(self, statuses: list[int]) -> None:
        self.statuses = statuses
        self.bodies: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []

    async def take(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(request.headers)
        self.bodies.append(await request.read())
        status = self.statuses.pop(0)
        if status == 0:
            await asyncio.Event().wait()
        if status == -1:
            raise web.HTTPFound("http://10.0.0.1/inside")
        return web.Response(status=status)


@pytest.mark.parametrize(
    ("statuses", "result", "attempts"),
    [
        ([200], "delivered", 1),
        ([500, 503, 200], "delivered", 3),
        ([500, 500, 500], "failed", 3),
        ([0, 200], "delivered", 2),
        ([0, 0, 0], "failed", 3),
        ([-1, -1, -1], "failed", 3),
        ([204], "delivered", 1),
    ],
    ids=["well", "fails twice", "always fails", "late once", "hangs", "redirects inwards", "with no content"],
)
async def test_the_job_is_untouched_and_the_metrics_tell_how_the_delivery_went(
    aiohttp_client: MakeClient, statuses: list[int], result: str, attempts: int
) -> None:
    receiver = Receiver(statuses)
    app = web.Application()
    app.router.add_post("/done", receiver.take)
    async with TestServer(app, handler_cancellation=True) as server:
        client = await aiohttp_client(create_app(Registry(settings(f"127.0.0.1:{server.port}"))))
        body = {"input": {"text": "mug"}, "webhook": f"http://127.0.0.1:{server.port}/done?token=secret"}
        job = await read(await client.post("/v2/upper/runsync", json=body))
        assert (job["status"], job["output"]) == ("COMPLETED", {"text": "MUG"})
        await until_counted(client, f'aiservices_webhooks_total{{result="{result}",service="upper"}} 1.0')
        assert await read(await client.get(f"/v2/upper/status/{job['id']}")) == job
    assert len(receiver.bodies) == attempts
    assert [msgspec.json.decode(each) for each in receiver.bodies] == [job] * attempts


async def test_trace_and_request_id_go_with_the_job_to_webhook_and_log(aiohttp_client: MakeClient) -> None:
    receiver, trace_id = Receiver([500, 200]), "4bf92f3577b34da6a3ce929d0e0e4736"
    app = web.Application()
    app.router.add_post("/done", receiver.take)
    sent = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01", "tracestate": "shop=1", "X-Request-ID": "order-17"}
    async with TestServer(app) as server:
        client = await aiohttp_client(create_app(Registry(settings(f"127.0.0.1:{server.port}"))))
        body = {"input": {"text": "mug"}, "webhook": str(server.make_url("/done"))}
        with capture_logs() as logs:
            job = await read(await client.post("/v2/upper/runsync", json=body, headers=sent))
        await until_counted(client, 'aiservices_webhooks_total{result="delivered",service="upper"} 1.0')
    (line,) = (line for line in logs if line["event"] == "job.finished")
    assert (line["service"], line["job"], line["request"], line["trace"]) == ("upper", job["id"], "order-17", trace_id)
    assert "mug" not in str(line).lower()
    parents = [headers["traceparent"].split("-") for headers in receiver.headers]
    assert [(version, trace, flags) for version, trace, _, flags in parents] == [("00", trace_id, "01")] * 2
    assert len({span for _, _, span, _ in parents} | {"00f067aa0ba902b7"}) == 3
    assert {headers["tracestate"] for headers in receiver.headers} == {"shop=1"}
    assert {headers["webhook-id"] for headers in receiver.headers} == {f"msg_{job['id']}_1"}


async def test_a_job_whose_request_names_no_trace_has_the_one_that_its_id_tells(aiohttp_client: MakeClient) -> None:
    receiver = Receiver([200])
    app = web.Application()
    app.router.add_post("/done", receiver.take)
    async with TestServer(app) as server:
        client = await aiohttp_client(create_app(Registry(settings(f"127.0.0.1:{server.port}"))))
        body = {"input": {"text": "mug"}, "webhook": str(server.make_url("/done"))}
        job = await read(await client.post("/v2/upper/runsync", json=body, headers={"tracestate": "shop=1"}))
        await until_counted(client, 'aiservices_webhooks_total{result="delivered",service="upper"} 1.0')
    (headers,) = receiver.headers
    assert headers["traceparent"].split("-")[1] == job["id"].replace("-", "")
    assert "tracestate" not in headers


async def test_a_private_receiver_is_refused_at_submission(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(create_app(Registry(settings("127.0.0.1:1"))))
    body = {"input": {"text": "mug"}, "webhook": "http://169.254.169.254/latest"}
    refusal = await read(await client.post("/v2/upper/run", json=body), 400)
    assert re.match(r"\$\.webhook: ", refusal["error"])


def settings(allowed: str) -> Config:
    return Config(
        server=ServerConfig(grace_s=0.0),
        fetch=FetchConfig(allow_hosts=(allowed,)),
        webhook=WebhookConfig(timeout_s=0.5, attempts=ATTEMPTS, retry_wait_s=0.0),
        services={"upper": ServiceConfig(name="upper", handler="tests.fakes:Upper", device="cpu", batch_wait_s=0)},
    )


async def until_counted(client: Client, line: str) -> None:
    async with asyncio.timeout(10):
        while line not in (await (await client.get("/metrics")).text()).splitlines():
            pass
