"""Limits of keys, over HTTP: what is refused, what waits, and what changes while the server runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiservices.settings import ServerConfig
from aiservices.transports.http.auth import KEYS
from aiservices.transports.http.lookup import REGISTRY
from tests.fakes import Counting, Gated
from tests.transports.http.apps import Client, MakeClient, handler_of, make_app, read, until, wait_until

SHOP, RIVAL = "shop-0123456789abcdef", "rival-0123456789abcdef"


def keys(path: Path, limits: str) -> ServerConfig:
    path.write_text(
        f'[tenants.shop.keys.backend]\nkey = "{SHOP}"\n{limits}\n[tenants.rival.keys.one]\nkey = "{RIVAL}"\n'
    )
    return ServerConfig(grace_s=0.0, keys_file=str(path))


async def ask(client: Client, path: str, key: str = SHOP, method: str = "POST", status: int = 200) -> dict[str, Any]:
    body = {"input": {"text": "mug"}} if method == "POST" else None
    answer = await client.request(method, path, headers={"Authorization": f"Bearer {key}"}, json=body)
    assert (status != 429) or int(answer.headers["Retry-After"]) >= 1
    return await read(answer, status)


async def test_a_key_that_submits_too_fast_or_has_too_many_waiting_is_told_so(
    aiohttp_client: MakeClient, tmp_path: Path
) -> None:
    server = keys(tmp_path / "keys.toml", "jobs_per_minute = 18\nmax_queued = 1")
    client = await aiohttp_client(make_app(Gated, server=server, max_batch_size=1))
    await ask(client, "/gated/run")
    await wait_until(handler_of(client, Gated).entered)
    await ask(client, "/gated/run")
    refused = await ask(client, "/gated/run", status=429)
    assert refused["error"] == "this key may have 1 jobs in the queue"
    await ask(client, "/gated/purge-queue")
    await ask(client, "/gated/run")
    await ask(client, "/gated/purge-queue")
    refused = await ask(client, "/gated/run", status=429)
    assert refused["error"] == "this key may submit 18 jobs a minute"
    await ask(client, "/gated/run", RIVAL)
    assert client.app is not None
    rendered, _ = client.app[REGISTRY].metrics.render()
    assert b'aiservices_requests_rejected_total{code="limit_reached",service="gated"} 2.0' in rendered
    assert b'aiservices_key_jobs_total{key="backend",service="gated",status="CANCELLED",tenant="shop"} 2.0' in rendered
    handler_of(client, Gated).gate.set()


async def test_jobs_above_what_a_key_may_have_running_wait_over_all_services(
    aiohttp_client: MakeClient, tmp_path: Path
) -> None:
    server = keys(tmp_path / "keys.toml", "max_running = 1")
    client = await aiohttp_client(make_app(Gated, Counting, server=server, max_batch_size=4))
    assert client.app is not None
    first = await ask(client, "/gated/run")
    await wait_until(handler_of(client, Gated).entered)
    second = await ask(client, "/counting/run")
    assert (await ask(client, "/counting/runsync", RIVAL))["status"] == "COMPLETED"
    shown = await ask(client, f"/counting/status/{second['id']}", method="GET")
    assert shown["status"] == "IN_QUEUE"
    handler_of(client, Gated).gate.set()
    assert (await ask(client, f"/gated/status-sync/{first['id']}", method="GET"))["status"] == "COMPLETED"
    assert (await ask(client, f"/counting/status-sync/{second['id']}?wait=5000", method="GET"))["status"] == "COMPLETED"


async def test_limits_follow_the_file(
    aiohttp_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiservices.keys.WATCH_EVERY_S", 0.01)
    server = keys(tmp_path / "keys.toml", "max_running = 1")
    client = await aiohttp_client(make_app(Gated, Counting, server=server))
    assert client.app is not None
    await ask(client, "/gated/run")
    await wait_until(handler_of(client, Gated).entered)
    waiting = await ask(client, "/counting/run")
    assert client.app[KEYS].limits
    keys(tmp_path / "keys.toml", "operator = false")
    ring = client.app[KEYS]
    await until(lambda: not ring.limits)
    ended = await ask(client, f"/counting/status-sync/{waiting['id']}?wait=5000", method="GET")
    assert ended["status"] == "COMPLETED"
    handler_of(client, Gated).gate.set()


async def test_a_key_with_many_jobs_lets_another_go_between(aiohttp_client: MakeClient, tmp_path: Path) -> None:
    client = await aiohttp_client(
        make_app(Gated, server=keys(tmp_path / "keys.toml", ""), max_batch_size=1, prefetch=1)
    )
    await ask(client, "/gated/run")
    await wait_until(handler_of(client, Gated).entered)
    for _ in range(20):
        await ask(client, "/gated/run")
    other = await ask(client, "/gated/run", RIVAL)
    assert (await ask(client, f"/gated/status/{other['id']}", RIVAL, method="GET"))["queuePosition"] == 2
    handler_of(client, Gated).gate.set()
