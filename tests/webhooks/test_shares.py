"""One silent receiver, or one tenant, leaves room for the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import attrs

from aiservices.settings import WebhookConfig
from tests.webhooks.bench import URL, Bench, Receiver

SILENT = "https://silent.example/"


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
