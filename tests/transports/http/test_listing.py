"""``GET jobs``: what is told of whose jobs, by status and page by page."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from aiservices.callers import Caller
from aiservices.jobs import EndReason, JobRequest, Stage
from aiservices.settings import ServerConfig
from aiservices.transports.http import answers, listing
from aiservices.transports.http.lookup import REGISTRY
from tests.fakes import Counting, Gated, Upper
from tests.transports.http.apps import Client, MakeClient, ended, handler_of, make_app, read, run, until, wait_until
from tests.transports.http.test_jobs import MOUNTS
from tests.transports.http.test_tenants import KEYS, server

__all__ = ["server"]


async def listed(client: Client, service: str, query: str = "", key: str = "") -> dict[str, Any]:
    headers = {"Authorization": key} if key else {}
    return await read(await client.get(f"/v2/{service}/jobs{query}", headers=headers))


async def ids(client: Client, service: str, query: str) -> list[str]:
    return [job["id"] for job in (await listed(client, service, query))["jobs"]]


@pytest.mark.parametrize("mount", MOUNTS)
async def test_every_mount_lists_jobs(aiohttp_client: MakeClient, mount: str) -> None:
    client = await aiohttp_client(make_app(Upper))
    job_id = await run(client, "upper", text="mug")
    done = await ended(client, "upper", job_id)
    shown = await read(await client.get(f"{mount}/jobs"))
    created_at = datetime.fromisoformat(shown["jobs"][0].pop("createdAt"))
    assert abs((datetime.now(UTC) - created_at).total_seconds()) < 60
    del done["output"]
    assert shown == {"jobs": [done]}


async def test_jobs_of_each_status_are_listed_the_newest_first(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Gated, max_batch_size=1, prefetch=1))
    running = await run(client, "gated", text="running")
    await wait_until(handler_of(client, Gated).entered)
    queued = [await run(client, "gated", text="queued") for _ in range(3)]
    await client.post(f"/v2/gated/cancel/{queued.pop(1)}")
    assert await ids(client, "gated", "?status=IN_PROGRESS") == [running]
    assert await ids(client, "gated", "?status=IN_QUEUE") == queued[::-1]
    assert await ids(client, "gated", "?status=IN_QUEUE,IN_PROGRESS") == [*queued[::-1], running]
    assert len(await ids(client, "gated", "")) == 4
    shown = (await listed(client, "gated", "?status=IN_QUEUE"))["jobs"]
    assert [job["queuePosition"] for job in shown] == [2, 1]
    handler_of(client, Gated).gate.set()


async def test_the_list_is_read_page_by_page(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    known = [await run(client, "upper", text="mug") for _ in range(5)]
    first = await listed(client, "upper", "?limit=2")
    second = await listed(client, "upper", f"?limit=2&before={first['next']}")
    third = await listed(client, "upper", f"?limit=2&before={second['next']}")
    assert "next" not in third
    assert [job["id"] for page in (first, second, third) for job in page["jobs"]] == known[::-1]


async def test_two_tenants_do_not_see_each_others_jobs(aiohttp_client: MakeClient, server: ServerConfig) -> None:
    client = await aiohttp_client(make_app(Upper, server=server))
    known = {}
    for name in ("shop", "rival"):
        headers = {"Authorization": KEYS[name]}
        answer = await client.post("/v2/upper/runsync", json={"input": {"text": "mug"}}, headers=headers)
        known[name] = (await read(answer))["id"]
    for name, job_id in known.items():
        shown = await listed(client, "upper", key=KEYS[name])
        assert [job["id"] for job in shown["jobs"]] == [job_id]
        assert not {"tenant", "key"} & set(shown["jobs"][0])
    seen = (await listed(client, "upper", key=KEYS["operator"]))["jobs"]
    assert [(job["id"], job["tenant"], job["key"]) for job in seen] == [
        (known["rival"], "rival", "rival-key"),
        (known["shop"], "shop", "shop-key"),
    ]
    headers = {"Authorization": KEYS["shop"]}
    answer = await client.get(f"/v2/upper/jobs?before={known['rival']}", headers=headers)
    await read(answer, 404)
    await read(await client.get("/v2/upper/jobs"), 401)


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("limit=0", "limit: expected a whole number from 1 to 1000"),
        ("limit=1001", "limit: expected"),
        ("limit=", "limit: expected"),
        ("limit=1e2", "limit: expected"),
        ("status=", "status: unknown status ''"),
        ("status=FAILED,failed", "status: unknown status 'failed'"),
    ],
)
async def test_a_query_that_does_not_fit_is_refused(aiohttp_client: MakeClient, query: str, complaint: str) -> None:
    client = await aiohttp_client(make_app(Upper, load="first_use"))
    shown = await read(await client.get(f"/v2/upper/jobs?{query}"), 400)
    assert shown["error"].startswith(complaint)


@pytest.mark.parametrize("before", ["", "7c1c3a1e-6d2b-4a7e-9f55-2f0a8a6f3b10"])
async def test_there_is_nothing_before_a_job_that_is_not_there(aiohttp_client: MakeClient, before: str) -> None:
    client = await aiohttp_client(make_app(Upper, load="first_use"))
    await read(await client.get(f"/v2/upper/jobs?before={before}"), 404)


async def test_progress_is_told_and_no_output(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Counting))
    handler = handler_of(client, Counting)
    handler.free_running = False
    job_id = await run(client, "counting", text="a", count=4)
    await wait_until(handler.waiting)
    handler.turn.release()
    assert client.app is not None
    job = client.app[REGISTRY].get("counting")._jobs.get(job_id)
    await until(lambda: job.progress is not None)
    (shown,) = (await listed(client, "counting"))["jobs"]
    assert shown["progress"] == 0.25
    assert "output" not in shown
    handler.turn.release(10)


async def test_many_jobs_are_listed_in_rounds_and_long_errors_cut(
    aiohttp_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "JOBS_PER_ROUND", 10)
    monkeypatch.setattr(answers, "ON_LOOP_BYTES", 100)
    client = await aiohttp_client(make_app(Upper, load="first_use"))
    assert client.app is not None
    jobs = client.app[REGISTRY].get("upper")._jobs
    for _ in range(25):
        request = JobRequest(input={"text": "a"}, caller=Caller(operator=True))
        jobs.submit(request, {}).finish(Stage.FAILED, reason=EndReason.FAILED, error="e" * 1000)
    shown = (await listed(client, "upper"))["jobs"]
    assert [job["error"] for job in shown] == ["e" * 300 + "…"] * 25


async def test_a_job_whose_acceptance_cannot_be_written_is_not_listed(
    aiohttp_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await aiohttp_client(make_app(Upper, load="first_use"))
    assert client.app is not None
    service = client.app[REGISTRY].get("upper")
    jobs = [service._jobs.submit(JobRequest(input={"text": "a"}), {}) for _ in range(2)]

    async def refuse() -> None:
        service.refuse([jobs[0].id], "no space left on the disk")

    monkeypatch.setattr(service, "wait_recorded", refuse)
    assert await ids(client, "upper", "") == [jobs[1].id]
