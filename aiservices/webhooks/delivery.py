"""One webhook on its way, and how it may end."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable

import attrs

from aiservices.fetch import host_of
from aiservices.spans import Span, start
from aiservices.trace import Trace


class WebhookResult(enum.StrEnum):
    """How a delivery ended, as ``on_result`` counts it."""

    DELIVERED = "delivered"
    """The receiver answered 2xx."""
    FAILED = "failed"
    """No attempt was answered with 2xx."""
    REFUSED = "refused"
    """The guard forbids the URL, for instance because its host turned out to be a private one, or it answered 410."""
    DROPPED = "dropped"
    """Given up by us: too many were pending, of all, of its receiver or of its tenant."""
    CUT_SHORT = "cut_short"
    """The process ended before the delivery did."""


Encode = Callable[[], Awaitable[bytes]]
"""Makes the body when it is needed; a large one off the event loop."""


@attrs.define
class Delivery:
    """One delivery; the arguments are those of :meth:`aiservices.webhooks.WebhookSender.send`."""

    url: str = attrs.field(repr=False)
    encode: Encode | None = attrs.field(repr=False)
    size_bytes: int
    service: str
    job_id: str
    attempt: int
    tenant: str
    trace: Trace | None
    on_settled: Callable[[], None] | None = attrs.field(default=None, repr=False)
    host: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.host = host_of(self.url)

    @property
    def log_fields(self) -> dict[str, str]:
        """What each of its lines in the log names."""
        return {"service": self.service, "job": self.job_id, "host": self.host}

    def begin_span(self, attempt: int) -> Span | None:
        """Begin the span of one attempt, 1 for the first; None for what belongs to no trace."""
        if self.trace is None:
            return None
        attributes: dict[str, str | int] = {
            "aiservices.service": self.service,
            "aiservices.job.id": self.job_id,
            "server.address": self.host,
            "http.request.resend_count": attempt - 1,
        }
        return start("webhook", self.trace, kind="client", attributes=attributes)
