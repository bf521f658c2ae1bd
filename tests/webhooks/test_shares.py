"""One silent receiver, or one tenant, leaves room for the others."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from functools import partial

import attrs
import pytest

from aiservices.errors import ConfigError
from aiservices.settings import WebhookConfig
from aiservices.webhooks import SigningKeys, WebhookSender
from tests.webhooks.bench import BODY, URL, Bench, Receiver, encoded

SILENT = "https://silent.example/"
SECRET, OWN = ("whsec_" + base64.b64encode(bytes([each]) * 24).decode() for each in (1, 2))


@attrs.define
class SilentHost(Receiver):
    """Never answers for one host."""

    async def post_json(self, url: str, body: bytes, *, headers: Mapping[str, str], timeout_s: float) -> int:
        status = await super().post_json(url, body, headers=headers, timeout_s=timeout_s)
        if "silent" in url:
            await asyncio.Event().wait()
        return status


async def test_deliveries_to_a_silent_host_leave_room_for_others() -> None:
    bench = Bench(SilentHost([200]), WebhookConfig(), max_pending_bytes=10**6, max_concurrency=32)
    for _ in range(1050):
        bench.send(SILENT)
    assert bench.counts == ["dropped"] * 550
    bench.send(URL)
    await bench.until_counted(551)
    assert bench.counts[-1] == "delivered"
    assert sum(url == SILENT for url, *_ in bench.receiver.attempts) == WebhookConfig().max_per_host
    await bench.sender.drain(0)


async def test_a_hosts_share_is_free_again_once_its_deliveries_have_ended() -> None:
    bench = Bench(Receiver([200]), WebhookConfig(max_pending_per_host=1, max_pending_per_tenant=1))
    for count in range(1, 4):
        bench.send(tenant="acme")
        await bench.until_counted(count)
    assert bench.counts == ["delivered"] * 3


async def test_a_tenant_with_many_hosts_leaves_room_for_others() -> None:
    bench = Bench(SilentHost([200]), WebhookConfig(max_pending_per_tenant=2))
    for place in range(3):
        bench.send(f"https://silent{place}.example/", tenant="acme")
    assert bench.counts == ["dropped"]
    bench.send(tenant="other")
    await bench.until_counted(2)
    assert bench.counts == ["dropped", "delivered"]
    await bench.sender.drain(0)


async def test_jobs_without_a_tenant_share_no_tenants_bound() -> None:
    bench = Bench(Receiver([200]), WebhookConfig(max_pending_per_tenant=1))
    bench.send()
    bench.send()
    await bench.sender.drain(1)
    assert bench.counts == ["delivered"] * 2


async def test_a_tenants_own_secrets_sign_alone() -> None:
    config = WebhookConfig(secrets=(SECRET,), secret="old")
    bench = Bench(Receiver([200]), config)
    sender = WebhookSender(
        config, bench.receiver, bench.count, tenant_secrets={"acme": [OWN]}, clock=lambda: 1_700_000_000.0
    )
    for tenant in ("acme", "other"):
        sender.send(URL, partial(encoded, BODY), 1, service="echo", job_id="1", attempt=1, tenant=tenant)
    await sender.drain(1)
    acme, other = (headers for _, _, headers, _ in bench.receiver.attempts)
    assert acme == SigningKeys([OWN]).headers("msg_1_1", 1_700_000_000, BODY)
    assert other == SigningKeys([SECRET], "old").headers("msg_1_1", 1_700_000_000, BODY)


def test_a_tenants_refused_secret_names_the_tenant() -> None:
    with pytest.raises(ConfigError, match=r"^tenant 'acme': webhook_secrets\[0\]: expected "):
        WebhookSender(WebhookConfig(), Receiver([200]), lambda *_: None, tenant_secrets={"acme": ["short"]})
