"""Webhooks by way of the real fetcher: to a receiver on loopback, and to addresses that its guard forbids."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from standardwebhooks import Webhook

from aiservices.errors import InvalidInput
from aiservices.fetch import Fetcher
from aiservices.settings import FetchConfig, WebhookConfig
from aiservices.webhooks import WebhookSender

BODY = b'{"id":"1","status":"COMPLETED"}'
SECRET = "whsec_" + base64.b64encode(b"s" * 24).decode()


async def encode() -> bytes:
    return BODY


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(FetchConfig(allow_hosts=("127.0.0.1",)))
    await fetcher.start()
    yield fetcher
    await fetcher.close()


async def test_a_real_receiver_gets_the_status_object_and_its_signature(fetcher: Fetcher) -> None:
    seen: list[tuple[str, bytes, object]] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        seen.append((request.headers["Content-Type"], body, Webhook(SECRET).verify(body, dict(request.headers))))
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", answer)
    results: list[str] = []
    async with TestServer(app) as server:
        sender = WebhookSender(WebhookConfig(secrets=(SECRET,)), fetcher, lambda *given: results.append(given[-1]))
        url = str(server.make_url("/hook"))
        sender.check_url(url)
        sender.send(url, encode, len(BODY), service="echo", job_id="1", attempt=1)
        await sender.drain(5)
    assert seen == [("application/json", BODY, {"id": "1", "status": "COMPLETED"})]
    assert results == ["delivered"]


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "http://[::1]/", "http://user@a.example/", "data:,a", "hook", ""])
async def test_the_real_guard_refuses_at_submission_and_at_delivery(fetcher: Fetcher, url: str) -> None:
    results: list[str] = []
    sender = WebhookSender(WebhookConfig(), fetcher, lambda *given: results.append(given[-1]))
    with pytest.raises(InvalidInput, match=r"^\$\.webhook: "):
        sender.check_url(url)
    sender.send(url, encode, len(BODY), service="echo", job_id="1", attempt=1)
    await sender.drain(5)
    assert results == ["refused"]
