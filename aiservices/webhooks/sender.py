"""Sends webhooks: attempts, retries and their bounds.

One POST of the status object; an answer of 2xx means that it arrived, 410 that nobody wants it, and anything else is
tried again: ``attempts`` times in all, ``retry_wait_s`` apart. A receiver may see one delivery twice (its answer got
lost), then with the same ``webhook-id``, and those of two jobs in any order. The caller chose the URL, so it passes the
guard of :mod:`aiservices.fetch`, at submission and again at every attempt.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Protocol

from aiservices.errors import FetchError, InvalidInput
from aiservices.fetch import HostSlots, Refused, host_of
from aiservices.logs import get_logger
from aiservices.settings import WebhookConfig
from aiservices.trace import Trace
from aiservices.webhooks.delivery import Delivery, Encode, WebhookResult
from aiservices.webhooks.shares import Share
from aiservices.webhooks.signing import SigningKeys, message_id

log = get_logger(__name__)

_STOPPING = "the process stops"
_JITTER = 0.1  # of the wait, either way: jobs that ended together should not come back together


_STILL_DUE = frozenset({WebhookResult.DROPPED, WebhookResult.CUT_SHORT})
"""Not over for good: where there is a journal, the next process sends it."""


class Poster(Protocol):
    """What a sender needs of :class:`aiservices.fetch.Fetcher`."""

    def check_url(self, url: str, *, field: str) -> None:
        """Raise :class:`FetchError` for a URL that the guard forbids by its text alone."""

    async def post_json(self, url: str, body: bytes, *, headers: Mapping[str, str], timeout_s: float) -> int:
        """POST and return the status, or raise :class:`FetchError`."""


OnResult = Callable[[str, str, int, WebhookResult], None]
"""Called with service, job id, attempt of the job, and how its delivery ended."""

SIGN_ON_LOOP_BYTES = 64 * 1024
"""A larger body is signed off the event loop: SHA-256 of 64 KiB takes some 50 µs."""


class WebhookSender:
    """Delivers status objects in the background, a bounded number at a time.

    Args:
        config: attempts, times, bounds, and the secrets to sign with.
        poster: sends through the guard.
        on_result: called on the loop once per :meth:`send`.
        max_pending_bytes: bound on the bodies of all pending deliveries; one alone may exceed it.
        max_concurrency: how many POSTs may be under way; the others wait.
        sleep: waits between attempts, in seconds.
        clock: seconds since the epoch, for the signature.
        rng: for the jitter of the wait.

    Raises:
        ConfigError: a secret has no right form.
    """

    def __init__(
        self,
        config: WebhookConfig,
        poster: Poster,
        on_result: OnResult,
        *,
        max_pending_bytes: int = 256 * 1024 * 1024,
        max_concurrency: int = 32,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._config = config
        self._poster = poster
        self._on_result = on_result
        self._max_pending_bytes = max_pending_bytes
        self._keys = SigningKeys(config.secrets, config.secret)
        self._slots = HostSlots(max_concurrency, config.max_per_host)
        self._per_host, self._per_tenant = Share(config.max_pending_per_host), Share(config.max_pending_per_tenant)
        self._sleep = sleep
        self._clock = clock
        self._rng = rng or random.Random()
        self._tasks: set[asyncio.Task[tuple[WebhookResult, str]]] = set()
        self._pending_bytes = 0
        self._closed = False

    @property
    def pending(self) -> int:
        """Deliveries that have not ended."""
        return len(self._tasks)

    def check_url(self, url: str, field: str = "$.webhook") -> None:
        """Refuse a URL at submission, as far as its text tells: scheme, form, user name, literal private address.

        Raises:
            InvalidInput: naming the field.
        """
        try:
            self._poster.check_url(url, field=field)
        except FetchError as error:
            raise InvalidInput(error.field, error.reason) from None

    def has_room(self, url: str, size_bytes: int, tenant: str = "") -> bool:
        """Whether :meth:`send` would take a delivery now, and not drop it."""
        return not self._closed and not self._reason_to_drop(host_of(url), size_bytes, tenant)

    def send(
        self,
        url: str,
        encode: Encode,
        size_bytes: int,
        *,
        service: str,
        job_id: str,
        attempt: int,
        tenant: str = "",
        trace: Trace | None = None,
        on_settled: Callable[[], None] | None = None,
    ) -> None:
        """Schedule a delivery and return at once. Runs on the loop; never raises for what happens to the delivery.

        Args:
            url: as the caller gave it.
            encode: makes the body, the status object as JSON.
            size_bytes: about how large the body will be.
            service: for the count.
            job_id: for the log and, with ``attempt``, for the id of the message.
            attempt: of the job, the one that has ended.
            tenant: whose job it is; it has a share of what may be pending.
            trace: the job's; each attempt is a child of it.
            on_settled: called once it arrived or its attempts are over; not where it was dropped, or cut short
                by the end of the process.
        """
        delivery = Delivery(url, encode, size_bytes, service, job_id, attempt, tenant, trace, on_settled)
        if self._closed:
            self._count(delivery, WebhookResult.CUT_SHORT, _STOPPING)
            return
        if reason := self._reason_to_drop(delivery.host, size_bytes, tenant):
            self._count(delivery, WebhookResult.DROPPED, reason)
            return
        self._per_host.add(delivery.host)
        self._per_tenant.add(tenant)
        self._pending_bytes += size_bytes
        task = asyncio.get_running_loop().create_task(self._deliver(delivery), name=f"webhook-{job_id}")
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._ended, delivery))

    async def drain(self, grace_s: float) -> None:
        """Take no more, let the pending deliveries end within a time, then cancel those that are left.

        A delivery that waits for its next attempt waits on: a receiver that restarts along with us gets its chance.

        Args:
            grace_s: how long to wait.
        """
        self._closed = True
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=grace_s)
        finally:
            left = list(self._tasks)
            for task in left:
                task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _reason_to_drop(self, host: str, size_bytes: int, tenant: str) -> str:
        if len(self._tasks) >= self._config.max_pending:
            return f"{self._config.max_pending} deliveries are pending"
        if self._tasks and self._pending_bytes + size_bytes > self._max_pending_bytes:
            return f"deliveries of more than {self._max_pending_bytes} bytes would be pending"
        if self._per_host.is_full(host):
            return f"{self._per_host.limit} deliveries to this host are pending"
        if tenant and self._per_tenant.is_full(tenant):
            return f"{self._per_tenant.limit} deliveries of this tenant are pending"
        return ""

    async def _deliver(self, delivery: Delivery) -> tuple[WebhookResult, str]:
        """Return how it ended and, where it did not arrive, the last reason."""
        encode, delivery.encode = delivery.encode, None  # it holds the output, of which the body has all
        assert encode is not None
        body = await encode()
        del encode
        result, reason = await self._attempt(delivery, body, 1)
        for attempt in range(2, self._config.attempts + 1):
            if result is not WebhookResult.FAILED:
                break
            log.info("webhook.retry", attempt=attempt, reason=reason, **delivery.log_fields)
            await self._sleep(self._config.retry_wait_s * self._rng.uniform(1 - _JITTER, 1 + _JITTER))
            result, reason = await self._attempt(delivery, body, attempt)
        return result, reason

    async def _attempt(self, delivery: Delivery, body: bytes, attempt: int) -> tuple[WebhookResult, str]:
        async with self._slots.taken(delivery.host):
            span = delivery.begin_span(attempt)
            result = WebhookResult.CUT_SHORT
            try:
                result, reason = await self._post(delivery, body, {} if span is None else span.trace.headers())
            finally:
                if span is not None:
                    span.end(error="" if result is WebhookResult.DELIVERED else result.value)
        return result, reason

    async def _post(self, delivery: Delivery, body: bytes, headers: Mapping[str, str]) -> tuple[WebhookResult, str]:
        signed = {**await self._sign(delivery, body), **headers}
        try:
            status = await self._poster.post_json(delivery.url, body, headers=signed, timeout_s=self._config.timeout_s)
        except Refused as error:
            return WebhookResult.REFUSED, error.reason
        except FetchError as error:
            return WebhookResult.FAILED, error.reason
        if 200 <= status < 300:
            return WebhookResult.DELIVERED, ""
        if status == HTTPStatus.GONE:
            return WebhookResult.REFUSED, "answered 410: nobody wants it"
        return WebhookResult.FAILED, f"answered {status}"

    async def _sign(self, delivery: Delivery, body: bytes) -> dict[str, str]:
        # Signed anew for each attempt, so that a receiver may refuse old timestamps and still take a retry.
        message, timestamp_s = message_id(delivery.job_id, delivery.attempt), int(self._clock())
        if len(body) <= SIGN_ON_LOOP_BYTES:
            return self._keys.headers(message, timestamp_s, body)
        return await asyncio.to_thread(self._keys.headers, message, timestamp_s, body)

    def _ended(self, delivery: Delivery, task: asyncio.Task[tuple[WebhookResult, str]]) -> None:
        # Counted here and not in the task, because one that is cancelled before its first step never runs.
        self._tasks.discard(task)
        self._pending_bytes -= delivery.size_bytes
        self._per_host.remove(delivery.host)
        self._per_tenant.remove(delivery.tenant)
        if task.cancelled():
            self._count(delivery, WebhookResult.CUT_SHORT, _STOPPING)
        elif (error := task.exception()) is not None:
            log.error("webhook.error", exc_info=error, **delivery.log_fields)
            self._count(delivery, WebhookResult.FAILED, "internal error")
        else:
            self._count(delivery, *task.result())

    def _count(self, delivery: Delivery, result: WebhookResult, reason: str) -> None:
        if result is WebhookResult.DELIVERED:
            log.debug("webhook.delivered", **delivery.log_fields)
        else:
            log.warning(f"webhook.{result}", reason=reason, **delivery.log_fields)
        self._on_result(delivery.service, delivery.job_id, delivery.attempt, result)
        if delivery.on_settled is not None and result not in _STILL_DUE:
            delivery.on_settled()
