"""A job's stream: RunPod's polls, and server-sent events."""

from __future__ import annotations

import json

import pytest

from aiservices.transports.http import jobs
from tests.fakes import Counting, Gated
from tests.transports.http.apps import MakeClient, ended, handler_of, make_app, read, run, serve, wait_until


async def test_a_stream_is_drained_and_ends(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Counting))
    job_id = await run(client, "counting", text="mug", count=3)
    await ended(client, "counting", job_id)
    first = await read(await client.get(f"/v2/counting/stream/{job_id}"))
    assert first == {"status": "COMPLETED", "stream": [{"output": 1}, {"output": 2}, {"output": 3}]}
    assert await read(await client.get(f"/v2/counting/stream/{job_id}")) == {"status": "COMPLETED", "stream": []}


async def test_a_poll_of_a_quiet_stream_comes_back_soon(
    aiohttp_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "STREAM_WAIT_S", 0.01)
    client = await aiohttp_client(make_app(Gated))
    job_id = await run(client, "gated", text="mug")
    await wait_until(handler_of(client, Gated).entered)
    assert await read(await client.get(f"/v2/gated/stream/{job_id}")) == {"status": "IN_PROGRESS", "stream": []}
    handler_of(client, Gated).gate.set()


async def test_the_stream_of_a_cancelled_job_tells_its_end_once(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Gated))
    job_id = await run(client, "gated", text="mug")
    await client.post(f"/v2/gated/cancel/{job_id}")
    assert await read(await client.get(f"/v2/gated/stream/{job_id}")) == {"status": "CANCELLED", "stream": []}
    for accept in ("*/*", "text/event-stream"):
        answer = await client.get(f"/v2/gated/stream/{job_id}", headers={"Accept": accept})
        shown = await read(answer, 410)
        assert (shown["id"], shown["status"]) == (job_id, "FAILED")
    handler_of(client, Gated).gate.set()


async def test_events_carry_each_chunk_and_then_the_status(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Counting))
    job_id = await run(client, "counting", text="mug", count=2)
    answer = await client.get(f"/v2/counting/stream/{job_id}", headers={"Accept": "text/event-stream"})
    assert answer.content_type == "text/event-stream"
    events = [event for event in (await answer.text()).split("\n\n") if event.startswith("event")]
    assert events[:-1] == ["event: output\ndata: 1", "event: output\ndata: 2"]
    name, _, data = events[-1].partition("\ndata: ")
    assert name == "event: status"
    assert json.loads(data)["output"] == {"text": "mug 2"}


async def test_two_readers_of_events_both_hear_of_a_cancelled_job(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Gated))
    job_id = await run(client, "gated", text="mug")
    events = {"Accept": "text/event-stream"}
    answers = [await client.get(f"/v2/gated/stream/{job_id}", headers=events) for _ in range(2)]
    await client.post(f"/v2/gated/cancel/{job_id}")
    for answer in answers:
        text = await answer.text()
        assert text.startswith("event: status")
        assert '"CANCELLED"' in text
        assert "HTTP/1.1" not in text
    handler_of(client, Gated).gate.set()


async def test_a_quiet_event_stream_sends_heartbeats(
    aiohttp_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiservices.transports.http.stream.HEARTBEAT_S", 0.01)
    client = await aiohttp_client(make_app(Gated))
    job_id = await run(client, "gated", text="mug")
    answer = await client.get(f"/v2/gated/stream/{job_id}", headers={"Accept": "text/event-stream"})
    assert await answer.content.readuntil(b"\n\n") == b": waiting\n\n"
    handler_of(client, Gated).gate.set()
    assert b"event: status" in await answer.content.read()


@pytest.mark.parametrize("handler_cancellation", [False, True])
async def test_a_reader_of_events_who_hangs_up_does_not_end_the_job(
    aiohttp_client: MakeClient, monkeypatch: pytest.MonkeyPatch, handler_cancellation: bool
) -> None:
    monkeypatch.setattr("aiservices.transports.http.stream.HEARTBEAT_S", 0.01)
    client = await aiohttp_client(await serve(make_app(Gated), handler_cancellation))
    job_id = await run(client, "gated", text="mug")
    answer = await client.get(f"/v2/gated/stream/{job_id}", headers={"Accept": "text/event-stream"})
    answer.close()
    handler_of(client, Gated).gate.set()
    assert (await ended(client, "gated", job_id))["status"] == "COMPLETED"
