"""The webhook and its retries: no test waits, the time between two attempts is a fake's."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
from collections.abc import AsyncIterator, Mapping

import attrs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from aiservices.errors import FetchError, InvalidInput
from aiservices.fetch import Fetcher, Refused
from aiservices.settings import FetchConfig, WebhookConfig
from aiservices.webhooks import SIGNATURE_HEADER, TIMESTAMP_HEADER, WebhookSender, sign

URL = "https://hooks.example.com/job?token=5ec2e7"
BODY = b'{"id":"1","status":"COMPLETED"}'


@attrs.define
class Receiver:
    """Answers attempts from a list, the last answer for ever: a status, an error to raise, or an event to wait for."""

    answers: list[int | Exception | asyncio.Event]
    attempts: list[tuple[str, bytes, Mapping[str, str], float]] = attrs.field(factory=list)
    asked: asyncio.Event = attrs.field(factory=asyncio.Event)

    def check_url(self, url: str, *, field: str) -> None:
        if "private" in url:
            raise Refused(field, "points to a private address")

    async def post_json(self, url: str, body: bytes, *, headers: Mapping[str, str], timeout_s: float) -> int:
        self.attempts.append((url, body, headers, timeout_s))
        self.asked.set()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            return 200
        return answer


@attrs.define
class Bench:
    """A sender with everything around it faked."""

    receiver: Receiver
    config: WebhookConfig = attrs.field(factory=WebhookConfig)
    max_pending_bytes: int = 1000
    max_concurrency: int = 10
    results: list[tuple[str, str]] = attrs.field(factory=list)
    waits_s: list[float] = attrs.field(factory=list)
    counted: asyncio.Event = attrs.field(factory=asyncio.Event)
    sender: WebhookSender = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.sender = WebhookSender(
            self.config,
            self.receiver,
            self.count,
            max_pending_bytes=self.max_pending_bytes,
            max_concurrency=self.max_concurrency,
            sleep=self.sleep,
            clock=lambda: 1_700_000_000.9,
            rng=random.Random(1),
        )

    async def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)

    def count(self, service: str, result: str) -> None:
        self.results.append((service, result))
        self.counted.set()

    async def until_counted(self, results: int) -> None:
        while len(self.results) < results:
            self.counted.clear()
            await asyncio.wait_for(self.counted.wait(), 5)

    def send(self, url: str = URL, body: bytes = BODY) -> None:
        self.sender.send(url, body, service="echo", job_id="1")

    @property
    def counts(self) -> list[str]:
        return [result for _, result in self.results]


async def test_a_delivery_that_is_answered_200_is_done() -> None:
    bench = Bench(Receiver([200]))
    bench.send()
    assert bench.sender.pending == 1
    await bench.sender.drain(1)
    assert bench.receiver.attempts == [(URL, BODY, {}, 10.0)]
    assert bench.results == [("echo", "delivered")]
    assert bench.sender.pending == 0


@pytest.mark.parametrize("answer", [201, 204, 302, 404, 410, 500, FetchError("$.webhook", "could not be connected")])
async def test_anything_but_200_is_tried_twice_more_ten_seconds_apart(answer: int | Exception) -> None:
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
        sender.send(URL, BODY, service="echo", job_id=job_id)
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
    assert bench.counts == ["delivered", "dropped"]
    assert bench.sender.pending == 0


async def test_a_delivery_that_is_cancelled_before_it_begins_is_counted_too() -> None:
    bench = Bench(Receiver([200]))
    bench.send()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await bench.sender.drain(1)
    assert bench.receiver.attempts == []
    assert bench.counts == ["dropped"]


async def test_after_draining_nothing_more_is_taken() -> None:
    bench = Bench(Receiver([200]))
    await bench.sender.drain(1)
    bench.send()
    assert bench.counts == ["dropped"]
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
    assert bench.counts == ["dropped"]


async def test_each_attempt_is_signed_where_a_secret_is_set() -> None:
    bench = Bench(Receiver([500, 200]), WebhookConfig(secret="s3cret"))
    bench.send()
    await bench.sender.drain(1)
    expected = hmac.new(b"s3cret", b"1700000000." + BODY, hashlib.sha256).hexdigest()
    for _, _, headers, _ in bench.receiver.attempts:
        assert headers == {TIMESTAMP_HEADER: "1700000000", SIGNATURE_HEADER: f"sha256={expected}"}
    assert sign("s3cret", 1_700_000_000, BODY) == f"sha256={expected}"
    assert sign("s3cret", 1_700_000_001, BODY) != f"sha256={expected}"


async def test_a_url_is_checked_at_submission_as_an_input_of_the_request() -> None:
    bench = Bench(Receiver([200]))
    bench.sender.check_url(URL)
    with pytest.raises(InvalidInput, match=r"^\$\.webhook: points to a private address$") as caught:
        bench.sender.check_url("http://private.example/")
    assert type(caught.value) is InvalidInput


# Through the real guard


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(FetchConfig(allow_hosts=("127.0.0.1",)))
    await fetcher.start()
    yield fetcher
    await fetcher.close()


async def test_a_real_receiver_gets_the_status_object_and_its_signature(fetcher: Fetcher) -> None:
    seen: list[tuple[str, bytes, bool]] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        timestamp_s = int(request.headers[TIMESTAMP_HEADER])
        genuine = hmac.compare_digest(request.headers[SIGNATURE_HEADER], sign("s3cret", timestamp_s, body))
        seen.append((request.headers["Content-Type"], body, genuine))
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", answer)
    results: list[str] = []
    async with TestServer(app) as server:
        sender = WebhookSender(WebhookConfig(secret="s3cret"), fetcher, lambda _, result: results.append(result))
        url = str(server.make_url("/hook"))
        sender.check_url(url)
        sender.send(url, BODY, service="echo", job_id="1")
        await sender.drain(5)
    assert seen == [("application/json", BODY, True)]
    assert results == ["delivered"]


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "http://[::1]/", "http://user@a.example/", "data:,a", "hook", ""])
async def test_the_real_guard_refuses_at_submission_and_at_delivery(fetcher: Fetcher, url: str) -> None:
    results: list[str] = []
    sender = WebhookSender(WebhookConfig(), fetcher, lambda _, result: results.append(result))
    with pytest.raises(InvalidInput, match=r"^\$\.webhook: "):
        sender.check_url(url)
    sender.send(url, BODY, service="echo", job_id="1")
    await sender.drain(5)
    assert results == ["refused"]
