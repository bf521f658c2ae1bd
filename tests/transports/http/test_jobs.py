"""The operations of the job API, over a real registry and small handlers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiservices.jobs import Job
from aiservices.transports.http import lookup
from aiservices.transports.http.lookup import REGISTRY
from tests.fakes import Gated, Unloadable, Upper
from tests.running import LIMIT_S
from tests.transports.http.apps import MakeClient, ended, handler_of, make_app, read, run, serve, wait_until

MOUNTS = ("/v2/upper", "/upper", "/upper/api/v1", "/api/v1")


@pytest.mark.parametrize("mount", MOUNTS)
async def test_every_mount_runs_jobs(aiohttp_client: MakeClient, mount: str) -> None:
    client = await aiohttp_client(make_app(Upper))
    accepted = await read(await client.post(f"{mount}/run", json={"input": {"text": "mug"}}))
    assert accepted["status"] in ("IN_QUEUE", "IN_PROGRESS")
    shown = await read(await client.get(f"{mount}/status-sync/{accepted['id']}"))
    assert shown["output"] == {"text": "MUG"}
    assert await read(await client.get(f"{mount}/status/{accepted['id']}")) == shown
    assert (await read(await client.get(f"{mount}/health")))["jobs"]["completed"] == 1


async def test_the_short_mount_is_there_for_a_single_service_only(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, Gated))
    shown = await read(await client.post("/api/v1/run", json={"input": {"text": "mug"}}), 404)
    assert shown["services"] == ["upper", "gated"]


async def test_times_are_whole_milliseconds_and_no_value_is_null(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    shown = await read(await client.post("/v2/upper/runsync", json={"input": {"text": "mug"}}))
    assert shown["status"] == "COMPLETED"
    assert {type(shown[key]) for key in ("delayTime", "executionTime")} == {int}
    assert None not in shown.values()


async def test_a_body_without_input_is_the_input(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    shown = await read(await client.post("/v2/upper/runsync", data=b'{"text": "mug"}'))
    assert shown["output"] == {"text": "MUG"}


async def test_runsync_answers_in_time_while_the_job_goes_on(
    aiohttp_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "SHORTEST_WAIT_MS", 1)
    client = await aiohttp_client(make_app(Gated))
    shown = await read(await client.post("/v2/gated/runsync?wait=20", json={"input": {"text": "mug"}}))
    assert shown.keys() == {"id", "status"}
    assert shown["status"] in ("IN_QUEUE", "IN_PROGRESS")
    handler_of(client, Gated).gate.set()
    assert (await ended(client, "gated", shown["id"]))["output"] == {"text": "MUG"}


@pytest.mark.parametrize("handler_cancellation", [False, True])
async def test_a_caller_who_hangs_up_does_not_end_the_job(
    aiohttp_client: MakeClient, handler_cancellation: bool
) -> None:
    client = await aiohttp_client(await serve(make_app(Gated), handler_cancellation))
    request: dict[str, Any] = {"json": {"input": {"text": "mug"}}, "headers": {"Idempotency-Key": "the one"}}
    caller = asyncio.create_task(client.post("/v2/gated/runsync", **request))
    await wait_until(handler_of(client, Gated).entered)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    handler_of(client, Gated).gate.set()
    shown = await read(await client.post("/v2/gated/runsync", **request))
    assert shown["output"] == {"text": "MUG"}
    assert handler_of(client, Gated).batches == [["mug"]]


@pytest.mark.parametrize("operation", ["status", "status-sync", "stream"])
async def test_reading_works_with_post_and_whatever_body_comes_with_it(
    aiohttp_client: MakeClient, operation: str
) -> None:
    client = await aiohttp_client(make_app(Upper))
    job_id = await run(client, "upper", text="mug")
    await ended(client, "upper", job_id)
    shown = await read(await client.post(f"/v2/upper/{operation}/{job_id}", data=b"null"))
    assert shown["status"] == "COMPLETED"


async def test_cancel_reads_no_body_and_tells_the_state(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Gated, max_batch_size=1))
    running = await run(client, "gated", text="one")
    await wait_until(handler_of(client, Gated).entered)
    waiting = await run(client, "gated", text="two")
    headers = {"Content-Type": "application/json"}
    for job_id in (waiting, running):
        shown = await read(await client.post(f"/v2/gated/cancel/{job_id}", headers=headers))
        assert shown == {"id": job_id, "status": "CANCELLED"}
    handler_of(client, Gated).gate.set()


async def test_cancelling_a_finished_job_tells_what_it_is(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    job_id = await run(client, "upper", text="mug")
    await ended(client, "upper", job_id)
    shown = await read(await client.post(f"/v2/upper/cancel/{job_id}"))
    assert shown == {"id": job_id, "status": "COMPLETED"}


async def test_retry_runs_a_failed_job_again_under_its_id(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    job_id = await run(client, "upper", text="fail")
    failed = await ended(client, "upper", job_id)
    assert failed["status"] == "FAILED"
    assert isinstance(failed["error"], str)
    shown = await read(await client.post(f"/v2/upper/retry/{job_id}"))
    assert shown["id"] == job_id
    assert shown["status"] in ("IN_QUEUE", "IN_PROGRESS")
    assert (await ended(client, "upper", job_id))["retries"] == 1


async def test_retry_of_a_completed_job_is_a_conflict(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    job_id = await run(client, "upper", text="mug")
    await ended(client, "upper", job_id)
    shown = await read(await client.post(f"/v2/upper/retry/{job_id}"), 409)
    assert shown["id"] == job_id
    assert "status" not in shown


async def test_purge_takes_out_what_waits_and_leaves_what_runs(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Gated, max_batch_size=1))
    running = await run(client, "gated", text="one")
    await wait_until(handler_of(client, Gated).entered)
    for text in ("two", "three"):
        await run(client, "gated", text=text)
    assert await read(await client.post("/v2/gated/purge-queue")) == {"removed": 2, "status": "completed"}
    handler_of(client, Gated).gate.set()
    assert (await ended(client, "gated", running))["status"] == "COMPLETED"


async def test_health_counts_in_runpods_words(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    shown = await read(await client.get("/v2/upper/health"))
    assert shown["jobs"].keys() == {"completed", "failed", "inProgress", "inQueue", "retried"}
    assert shown["workers"].keys() == {"idle", "initializing", "ready", "running", "throttled", "unhealthy"}


async def test_a_job_that_waits_shows_its_place(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Gated, max_batch_size=1))
    await run(client, "gated", text="one")
    await wait_until(handler_of(client, Gated).entered)
    await run(client, "gated", text="two")
    shown = await read(await client.get(f"/v2/gated/status/{await run(client, 'gated', text='three')}"))
    assert shown["status"] == "IN_QUEUE"
    assert isinstance(shown["queuePosition"], int)
    handler_of(client, Gated).gate.set()


async def test_an_idempotency_key_brings_the_same_job(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    headers = {"Idempotency-Key": "order 7"}
    first, again = [
        await read(await client.post("/v2/upper/run", json={"input": {"text": "mug"}}, headers=headers))
        for _ in range(2)
    ]
    assert first["id"] == again["id"]
    other = await client.post("/v2/upper/run", json={"input": {"text": "cup"}}, headers=headers)
    assert "error" in await read(other, 409)


@pytest.mark.parametrize(
    "beside",
    [
        {"webhook": "https://hooks.example.com/done"},
        {"policy": {"ttl": 10_000}},
        {"policy": {"executionTimeout": 5_000}},
        {"policy": {"lowPriority": True}},
        {"s3Config": {"accessId": "a", "accessSecret": "b", "bucketName": "mine", "endpointUrl": "https://a.example"}},
    ],
    ids=str,
)
async def test_the_same_key_with_another_wish_is_a_conflict(aiohttp_client: MakeClient, beside: dict[str, Any]) -> None:
    client = await aiohttp_client(make_app(Upper))
    headers = {"Idempotency-Key": "order 7"}
    body = {"input": {"text": "mug"}}
    first = await read(await client.post("/v2/upper/run", json=body, headers=headers))
    refused = await read(await client.post("/v2/upper/run", json={**body, **beside}, headers=headers), 409)
    assert refused == {"error": "this idempotency key was used with another request"}
    again = await read(await client.post("/v2/upper/run", json=body, headers=headers))
    assert again["id"] == first["id"]


async def test_the_order_of_keys_and_white_space_make_no_other_wish(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    bodies = [
        b'{"input": {"text": "mug", "count": 2}, "policy": {"lowPriority": true}}',
        b'{"policy": {"lowPriority":true}, "input": {"count": 2,\n"text": "mug"}}',
    ]
    first, again = [
        await read(await client.post("/v2/upper/run", data=each, headers={"Idempotency-Key": "order 7"}))
        for each in bodies
    ]
    assert first["id"] == again["id"]


async def test_a_full_queue_refuses_posts_and_says_when_to_come_again(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Gated, max_batch_size=1, prefetch=1, queue_size=1))
    await run(client, "gated", text="one")
    await wait_until(handler_of(client, Gated).entered)
    waiting = await run(client, "gated", text="two")
    refused = await client.post("/v2/gated/run", json={"input": {"text": "three"}})
    assert (await read(refused, 429))["status"] == "FAILED"
    assert int(refused.headers["Retry-After"]) >= 1
    assert (await client.get(f"/v2/gated/status/{waiting}")).status == 200
    handler_of(client, Gated).gate.set()


async def test_a_draining_server_refuses_jobs_and_still_shows_results(aiohttp_client: MakeClient) -> None:
    app = make_app(Upper)
    client = await aiohttp_client(app)
    job_id = await run(client, "upper", text="mug")
    await ended(client, "upper", job_id)
    await app[REGISTRY].drain(0)
    refused = await client.post("/v2/upper/run", json={"input": {"text": "mug"}})
    assert "shutting down" in (await read(refused, 503))["error"]
    assert int(refused.headers["Retry-After"]) >= 1
    assert (await read(await client.get(f"/v2/upper/status/{job_id}")))["output"] == {"text": "MUG"}


async def test_a_model_that_cannot_be_loaded_is_503_with_the_reason(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Unloadable, load="first_use"))
    accepted = await run(client, "unloadable", text="mug")
    assert "no such weights" in (await ended(client, "unloadable", accepted))["error"]
    refused = await client.post("/v2/unloadable/run", json={"input": {"text": "mug"}})
    assert "no such weights" in (await read(refused, 503))["error"]
    assert "Retry-After" not in refused.headers


async def test_a_warm_up_loads_the_model_and_runs_nothing(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, load="first_use"))
    shown = await read(await client.post("/v2/upper/runsync", json={"input": {"action": "warmup"}}))
    assert shown["output"] == {"state": "READY"}
    assert handler_of(client, Upper).batches == []


async def test_an_unknown_job_is_named_in_a_body_that_a_careless_client_can_read(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    for method, operation in [("GET", "status"), ("GET", "stream"), ("POST", "cancel"), ("POST", "retry")]:
        shown = await read(await client.request(method, f"/v2/upper/{operation}/nope"), 404)
        assert shown == {"id": "nope", "status": "FAILED", "error": "job not found or expired"}


async def test_a_job_belongs_to_its_service(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, Gated))
    job_id = await run(client, "upper", text="mug")
    await read(await client.get(f"/v2/gated/status/{job_id}"), 404)


async def test_an_unknown_service_tells_which_there_are(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, Gated))
    for path in ("/v2/nope/run", "/nope/run", "/nope/api/v1/run"):
        shown = await read(await client.post(path, json={"input": {}}), 404)
        assert shown["services"] == ["upper", "gated"]
        assert "nope" in shown["error"]


@pytest.mark.parametrize("wait", ["999", "300001", "", "-1", "1e4", "2000.5", "٢٠٠٠", "9" * 30, "soon"])
async def test_a_wait_that_is_no_allowed_time_is_refused(aiohttp_client: MakeClient, wait: str) -> None:
    client = await aiohttp_client(make_app(Upper))
    answer = await client.post("/v2/upper/runsync", params={"wait": wait}, json={"input": {"text": "mug"}})
    assert (await read(answer, 400))["error"] == "wait: expected whole milliseconds from 1000 to 300000"
    assert handler_of(client, Upper).batches == []


async def test_run_answers_as_the_job_was_accepted_though_it_goes_on_while_it_is_recorded(
    aiohttp_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def as_slow_as_the_job(job: Job) -> None:
        await job.wait_end(LIMIT_S)

    monkeypatch.setattr(Job, "wait_recorded", as_slow_as_the_job)
    client = await aiohttp_client(make_app(Upper))
    answer = await client.post("/v2/upper/run", json={"input": {"text": "mug"}})
    assert (await answer.json())["status"] == "IN_QUEUE"
