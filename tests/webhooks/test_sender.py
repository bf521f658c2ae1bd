"""The webhook and its retries: no test waits, the time between two attempts is a fake's."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest
from structlog.testing import capture_logs

from aiservices.errors import FetchError, InvalidInput
from aiservices.fetch import Refused
from aiservices.settings import WebhookConfig
from aiservices.webhooks import WebhookSender
from tests.webhooks.bench import BODY, URL, Bench, Receiver, encoded

UNSIGNED = {"webhook-id": "msg_1_1", "webhook-timestamp": "1700000000"}


@pytest.mark.parametrize("answer", [200, 201, 204, 299])
async def test_a_delivery_that_is_answered_2xx_is_done(answer: int) -> None:
    bench = Bench(Receiver([answer]))
    bench.send()
    assert bench.sender.pending == 1
    await bench.sender.drain(1)
    assert bench.receiver.attempts == [(URL, BODY, UNSIGNED, 10.0)]
    assert bench.results == [("echo", "1", 1, "delivered")]
    assert bench.sender.pending == 0


@pytest.mark.parametrize("answer", [302, 404, 500, FetchError("$.webhook", "could not be connected")])
async def test_anything_but_2xx_is_tried_twice_more_ten_seconds_apart(answer: int | Exception) -> None:
    bench = Bench(Receiver([answer]))
    bench.send()
    await bench.sender.drain(1)
    assert len(bench.receiver.attempts) == 3
    assert bench.waits_s == [pytest.approx(10, rel=0.1)] * 2
    assert bench.waits_s[0] != bench.waits_s[1], "jitter keeps deliveries that failed together apart"
    assert bench.counts == ["failed"]


async def test_a_later_attempt_may_succeed() -> None:
    bench = Bench(Receiver([500, FetchError("$.webhook", "took longer than 10 s"), 200]))
    bench.send()
    await bench.sender.drain(1)
    assert len(bench.receiver.attempts) == 3
    assert bench.counts == ["delivered"]


async def test_attempts_and_wait_come_from_the_settings() -> None:
    bench = Bench(Receiver([500]), WebhookConfig(attempts=1, timeout_s=3))
    bench.send()
    await bench.sender.drain(1)
    assert [timeout_s for *_, timeout_s in bench.receiver.attempts] == [3]
    assert bench.waits_s == []


async def test_a_receiver_that_is_gone_is_not_asked_again() -> None:
    bench = Bench(Receiver([410]))
    bench.send()
    await bench.sender.drain(1)
    assert len(bench.receiver.attempts) == 1
    assert bench.counts == ["refused"]


async def test_all_attempts_at_one_delivery_bear_one_id() -> None:
    bench = Bench(Receiver([500]))
    bench.send()
    await bench.sender.drain(1)
    assert [headers["webhook-id"] for _, _, headers, _ in bench.receiver.attempts] == ["msg_1_1"] * 3


async def test_what_the_guard_refuses_is_not_tried_again() -> None:
    bench = Bench(Receiver([Refused("$.webhook", "resolves to a private address")]))
    with capture_logs() as logs:
        bench.send()
        await bench.sender.drain(1)
    assert len(bench.receiver.attempts) == 1
    assert bench.counts == ["refused"]
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("webhook.refused", "resolves to a private address")
    ]


async def test_an_error_of_our_own_is_logged_whole_and_counted() -> None:
    bench = Bench(Receiver([ZeroDivisionError("ours")]))
    with capture_logs() as logs:
        bench.send()
        await bench.sender.drain(1)
    assert bench.counts == ["failed"]
    assert isinstance(logs[0]["exc_info"], ZeroDivisionError)


async def test_the_log_names_job_and_host_but_not_the_token_in_the_url() -> None:
    bench = Bench(Receiver([500]))
    with capture_logs() as logs:
        bench.send()
        await bench.sender.drain(1)
    assert [entry["event"] for entry in logs] == ["webhook.retry", "webhook.retry", "webhook.failed"]
    assert all(entry["host"] == "hooks.example.com" and entry["job"] == "1" for entry in logs)
    assert all(entry["reason"] == "answered 500" for entry in logs)
    assert "5ec2e7" not in json.dumps(logs)


async def test_more_pending_deliveries_than_allowed_are_dropped_and_counted() -> None:
    go_on = asyncio.Event()
    bench = Bench(Receiver([go_on]), WebhookConfig(max_pending=2))
    for _ in range(3):
        bench.send()
    assert bench.counts == ["dropped"]
    assert bench.sender.pending == 2
    go_on.set()
    await bench.sender.drain(1)
    assert bench.counts == ["dropped", "delivered", "delivered"]


async def test_the_bodies_of_pending_deliveries_are_bounded_too() -> None:
    go_on = asyncio.Event()
    bench = Bench(Receiver([go_on]), max_pending_bytes=100)
    bench.send(body=b"1" * 500)  # alone it may be larger, else it could never be delivered
    bench.send(body=b"1")
    assert bench.counts == ["dropped"]
    go_on.set()
    await bench.until_counted(2)
    bench.send(body=b"1" * 60)
    bench.send(body=b"1" * 60)
    bench.send(body=b"1" * 40)
    await bench.sender.drain(1)
    assert bench.counts == ["dropped", "delivered", "dropped", "delivered", "delivered"]


async def test_no_more_posts_run_at_once_than_allowed() -> None:
    go_on = asyncio.Event()
    bench = Bench(Receiver([go_on]), max_concurrency=2)
    for _ in range(5):
        bench.send()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(bench.receiver.attempts) == 2
    go_on.set()
    await bench.sender.drain(1)
    assert bench.counts == ["delivered"] * 5


async def test_a_delivery_that_waits_for_its_next_attempt_takes_no_slot() -> None:
    forever = asyncio.Event()

    async def wait(seconds: float) -> None:
        await forever.wait()

    bench = Bench(Receiver([500, 200]))
    sender = WebhookSender(bench.config, bench.receiver, bench.count, max_concurrency=1, sleep=wait)
    for job_id in ("1", "2"):
        sender.send(URL, partial(encoded, BODY), len(BODY), service="echo", job_id=job_id, attempt=1)
    await bench.until_counted(1)
    assert sender.pending == 1
    forever.set()
    await sender.drain(1)
    assert bench.counts == ["delivered", "delivered"]


async def test_draining_cancels_what_is_left_after_its_time_and_counts_it() -> None:
    bench = Bench(Receiver([200, asyncio.Event()]))
    bench.send()
    bench.send()
    await bench.sender.drain(0.01)
    assert bench.counts == ["delivered", "cut_short"]
    assert bench.sender.pending == 0


async def test_a_delivery_that_is_cancelled_before_it_begins_is_counted_too() -> None:
    bench = Bench(Receiver([200]))
    bench.send()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await bench.sender.drain(1)
    assert bench.receiver.attempts == []
    assert bench.counts == ["cut_short"]


async def test_after_draining_nothing_more_is_taken() -> None:
    bench = Bench(Receiver([200]))
    await bench.sender.drain(1)
    bench.send()
    assert bench.counts == ["cut_short"]
    assert bench.receiver.attempts == []


async def test_a_cancelled_drain_leaves_no_delivery_behind() -> None:
    bench = Bench(Receiver([asyncio.Event()]))
    bench.send()
    drain = asyncio.create_task(bench.sender.drain(60))
    await bench.receiver.asked.wait()
    drain.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drain
    await bench.until_counted(1)
    assert bench.counts == ["cut_short"]


async def test_a_url_is_checked_at_submission_as_an_input_of_the_request() -> None:
    bench = Bench(Receiver([200]))
    bench.sender.check_url(URL)
    with pytest.raises(InvalidInput, match=r"^\$\.webhook: points to a private address$") as caught:
        bench.sender.check_url("http://private.example/")
    assert type(caught.value) is InvalidInput
