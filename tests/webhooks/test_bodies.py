"""The bodies of webhooks: made once, when they are needed, and signed; the large ones beside the event loop."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading

import attrs
import pytest
from structlog.testing import capture_logs

from aiservices.callers import ANYONE
from aiservices.jobs import EndReason, JobRequest, Stage
from aiservices.settings import WebhookConfig
from aiservices.webhooks import SigningKeys
from aiservices.webhooks.sender import SIGN_ON_LOOP_BYTES
from tests.fakes import Upper, make_service, make_shared
from tests.webhooks.bench import BODY, URL, Bench, Receiver

SECRET = "whsec_" + base64.b64encode(b"s" * 24).decode()


async def test_each_attempt_is_signed_where_a_secret_is_set() -> None:
    bench = Bench(Receiver([500, 200]), WebhookConfig(secrets=(SECRET,), secret="s3cret"))
    bench.send()
    await bench.sender.drain(1)
    old = hmac.new(b"s3cret", b"1700000000." + BODY, hashlib.sha256).hexdigest()
    for _, _, headers, _ in bench.receiver.attempts:
        assert headers["X-Aiservices-Timestamp"] == "1700000000"
        assert headers["X-Aiservices-Signature"] == f"sha256={old}"
        assert headers == SigningKeys([SECRET], "s3cret").headers("msg_1_1", 1_700_000_000, BODY)


async def test_the_body_is_made_once_and_only_for_a_delivery_that_is_not_dropped() -> None:
    bench, made = Bench(Receiver([500, 500, 200]), WebhookConfig(max_pending=1)), []

    async def encode() -> bytes:
        made.append(BODY)
        return BODY

    for _ in range(2):
        bench.sender.send(URL, encode, len(BODY), service="echo", job_id="1", attempt=1)
    await bench.sender.drain(1)
    assert bench.counts == ["dropped", "delivered"]
    assert [body for _, body, _, _ in bench.receiver.attempts] == [BODY] * 3
    assert made == [BODY]


async def test_a_body_that_cannot_be_made_is_logged_whole_and_counted() -> None:
    bench = Bench(Receiver([200]))

    async def encode() -> bytes:
        raise ZeroDivisionError("ours")

    with capture_logs() as logs:
        bench.sender.send(URL, encode, 1, service="echo", job_id="1", attempt=1)
        await bench.sender.drain(1)
    assert bench.counts == ["failed"]
    assert isinstance(logs[0]["exc_info"], ZeroDivisionError)
    assert bench.receiver.attempts == []


@pytest.mark.parametrize(("size_bytes", "on_loop"), [(SIGN_ON_LOOP_BYTES, True), (SIGN_ON_LOOP_BYTES + 1, False)])
async def test_a_large_body_is_signed_beside_the_loop(
    monkeypatch: pytest.MonkeyPatch, size_bytes: int, on_loop: bool
) -> None:
    threads: list[threading.Thread] = []
    real = SigningKeys.headers

    def watched(keys: SigningKeys, message: str, timestamp_s: int, body: bytes) -> dict[str, str]:
        threads.append(threading.current_thread())
        return real(keys, message, timestamp_s, body)

    monkeypatch.setattr(SigningKeys, "headers", watched)
    bench = Bench(Receiver([200]), WebhookConfig(secrets=(SECRET,)), max_pending_bytes=2**20)
    bench.send(body=b"1" * size_bytes)
    await bench.sender.drain(5)
    assert [thread is threading.main_thread() for thread in threads] == [on_loop]
    assert bench.counts == ["delivered"]


async def test_the_webhook_of_a_job_that_is_retried_at_once_still_tells_its_first_end() -> None:
    bench = Bench(Receiver([200]))
    service = make_service(Upper(), shared=attrs.evolve(make_shared(), webhooks=bench.sender))
    job = service.submit(JobRequest(input={"text": "mug"}, webhook=URL))
    job.finish(Stage.FAILED, reason=EndReason.FAILED, error="the first end")
    service.retry(job.id, ANYONE)
    await job.wait_end(10)
    await bench.until_counted(2)
    first, second = (json.loads(body) for _, body, _, _ in bench.receiver.attempts)
    assert (first["status"], first["error"]) == ("FAILED", "the first end")
    assert "retries" not in first
    ids = [headers["webhook-id"] for _, _, headers, _ in bench.receiver.attempts]
    assert ids == [f"msg_{job.id}_1", f"msg_{job.id}_2"]
    assert (second["status"], second["output"], second["retries"]) == ("COMPLETED", {"text": "MUG"}, 1)
    await service.close()
