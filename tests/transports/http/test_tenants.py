"""Two tenants on one server: nothing of the one shows to the other, on any route."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp import web

from aiservices.settings import ServerConfig
from aiservices.transports.http import jobs
from aiservices.transports.http.lookup import REGISTRY
from tests.fakes import Gated
from tests.transports.http.apps import Client, MakeClient, handler_of, make_app, read, wait_until

KEYS = {name: f"{name}-0123456789abcdef" for name in ("shop", "rival", "operator")}
UNKNOWN = "00000000-0000-4000-8000-000000000000"
MARK = "mug of the shop"


@pytest.fixture
def server(tmp_path: Path) -> ServerConfig:
    tables = [
        f'[tenants.{name}.keys.{name}-key]\nkey = "{key}"\noperator = {str(name == "operator").lower()}\n'
        for name, key in KEYS.items()
    ]
    (tmp_path / "keys.toml").write_text("".join(tables))
    return ServerConfig(grace_s=0.0, keys_file=str(tmp_path / "keys.toml"))


@attrs.frozen
class Tenant:
    """One caller of the server."""

    client: Client
    name: str

    async def ask(self, method: str, path: str, **given: Any) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {KEYS[self.name]}", "Idempotency-Key": "same"}
        answer = await self.client.request(method, path, headers=headers, **given)
        return answer.status, await answer.read()

    async def run(self, text: str) -> str:
        headers = {"Authorization": KEYS[self.name], "Idempotency-Key": text}
        answer = await read(await self.client.post("/gated/run", json={"input": {"text": text}}, headers=headers))
        return str(answer["id"])

    async def status(self, job_id: str) -> str:
        headers = {"Authorization": KEYS[self.name]}
        return str((await read(await self.client.get(f"/gated/status/{job_id}", headers=headers)))["status"])


@pytest.fixture
async def client(aiohttp_client: MakeClient, server: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(jobs, "RUNSYNC_WAIT_S", 0.01)
    monkeypatch.setattr(jobs, "STREAM_WAIT_S", 0.01)
    return await aiohttp_client(make_app(Gated, server=server, max_batch_size=1))


async def three_jobs(client: Client) -> dict[str, str]:
    """The shop's jobs, by their status."""
    shop = Tenant(client, "shop")
    ended = await shop.run(f"{MARK}, ended")
    await wait_until(handler_of(client, Gated).entered)
    await shop.ask("POST", f"/gated/cancel/{ended}")
    running, queued = await shop.run(f"{MARK}, running"), await shop.run(f"{MARK}, queued")
    return {"CANCELLED": ended, "running": running, "queued": queued}


def routes(app: web.Application) -> list[tuple[str, str]]:
    return [
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    ]


async def test_no_route_shows_a_tenants_job_to_another_or_lets_it_act(client: Client) -> None:
    assert client.app is not None
    known = await three_jobs(client)
    before = {job_id: await Tenant(client, "shop").status(job_id) for job_id in known.values()}
    rival, walked = Tenant(client, "rival"), 0
    for method, template in routes(client.app):
        path = template.replace("{service}", "gated").replace("{file}", "index.html")
        assert "{" not in path.replace("{job_id}", ""), f"{path}: this test does not know what to put there"
        body = {"json": {"input": {"text": "other"}}} if method == "POST" else {}
        if "{job_id}" not in path:
            _, shown = await rival.ask(method, path, **body)
            assert not [word for word in (MARK, *known.values()) if word.encode() in shown], path
            continue
        status, unknown = await rival.ask(method, path.replace("{job_id}", UNKNOWN), **body)
        assert status == 404
        for job_id in known.values():
            answer = await rival.ask(method, path.replace("{job_id}", job_id), **body)
            assert answer == (404, unknown.replace(UNKNOWN.encode(), job_id.encode())), path
            walked += 1
    assert walked == 3 * 8 * len(jobs.mounts(single_service=True))
    assert {job_id: await Tenant(client, "shop").status(job_id) for job_id in known.values()} == before


async def test_an_operator_sees_and_acts_on_every_tenants_jobs(client: Client) -> None:
    known, operator = await three_jobs(client), Tenant(client, "operator")
    assert await operator.status(known["queued"]) == "IN_QUEUE"
    await operator.ask("POST", "/gated/purge-queue")
    assert await operator.status(known["queued"]) == "CANCELLED"


async def test_a_tenant_purges_its_own(client: Client) -> None:
    known, rival = await three_jobs(client), Tenant(client, "rival")
    own = await rival.run("mine")
    assert b'"removed":1' in (await rival.ask("POST", "/gated/purge-queue"))[1]
    assert await rival.status(own) == "CANCELLED"
    assert await Tenant(client, "shop").status(known["queued"]) == "IN_QUEUE"


async def test_idempotency_keys_of_two_tenants_do_not_meet(client: Client) -> None:
    shop, rival = Tenant(client, "shop"), Tenant(client, "rival")
    assert await shop.run("a") == await shop.run("a") != await rival.run("a")


async def test_only_an_operator_reads_metrics_and_reasons(client: Client) -> None:
    statuses = [(await Tenant(client, name).ask("GET", "/metrics"))[0] for name in ("operator", "shop")]
    assert statuses == [200, 403]
    assert client.app is not None
    client.app[REGISTRY].get("gated")._model.fail("cannot read /srv/weights")
    told = [b"/srv/weights" in (await Tenant(client, name).ask("GET", "/readyz"))[1] for name in ("operator", "shop")]
    assert told == [True, False]
