"""A sender of webhooks with everything around it faked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from functools import partial

import attrs

from aiservices.fetch import Refused
from aiservices.settings import WebhookConfig
from aiservices.webhooks import WebhookSender

URL = "https://hooks.example.com/job?token=5ec2e7"
BODY = b'{"id":"1","status":"COMPLETED"}'


async def encoded(body: bytes) -> bytes:
    return body


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
    results: list[tuple[str, str, int, str]] = attrs.field(factory=list)
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

    def count(self, service: str, job_id: str, attempt: int, result: str) -> None:
        self.results.append((service, job_id, attempt, result))
        self.counted.set()

    async def until_counted(self, results: int) -> None:
        while len(self.results) < results:
            self.counted.clear()
            await asyncio.wait_for(self.counted.wait(), 5)

    def send(self, url: str = URL, body: bytes = BODY, tenant: str = "") -> None:
        encode = partial(encoded, body)
        self.sender.send(url, encode, len(body), service="echo", job_id="1", attempt=1, tenant=tenant)

    @property
    def counts(self) -> list[str]:
        return [result for *_, result in self.results]
