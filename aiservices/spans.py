"""Spans of OpenTelemetry, where its API package is installed and somebody set a tracer provider up.

The one module that knows the package. Without it, or without a provider (``opentelemetry-instrument`` sets one up),
nothing is recorded, and all that happens is what happened before: headers go out with a span id made up for each.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from aiservices.trace import Trace

try:
    from opentelemetry import context as otel_context
    from opentelemetry import trace as otel
except ImportError:
    AVAILABLE = False
else:
    AVAILABLE = True

Kind = Literal["internal", "client", "consumer"]
Attributes = Mapping[str, str | int]

_NAME = "aiservices"


@attrs.frozen(eq=False)
class Span:
    """A piece of work that has begun.

    Attributes:
        trace: its place; what is done for it goes below.
    """

    trace: Trace
    _span: Any = None

    @property
    def recording(self) -> bool:
        """Whether anybody will see it."""
        return self._span is not None and bool(self._span.is_recording())

    def end(self, *, attributes: Attributes | None = None, error: str = "", ended_s: float | None = None) -> None:
        """End it.

        Args:
            attributes: what is known now.
            error: why it failed, one of a small number of words; empty: it did not.
            ended_s: when, in seconds since the epoch; None: now.
        """
        if self._span is None:
            return
        self._span.set_attributes(attributes or {})
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(otel.StatusCode.ERROR)
        self._span.end(_nanoseconds(ended_s))


def enabled() -> bool:
    """Whether spans go anywhere."""
    return _tracer() is not None


def start(
    name: str,
    parent: Trace,
    *,
    kind: Kind = "internal",
    attributes: Attributes | None = None,
    began_s: float | None = None,
) -> Span:
    """Begin a piece of work.

    Args:
        name: one of a small number of words.
        parent: the place in a trace that it goes below.
        kind: ``client`` where another process answers, ``consumer`` for what was queued.
        attributes: nothing of what a caller sent.
        began_s: when, in seconds since the epoch; None: now.
    """
    tracer = _tracer()
    if tracer is None:
        return Span(parent.child())
    span = tracer.start_span(
        name,
        _context_of(parent),
        kind=otel.SpanKind[kind.upper()],
        attributes=attributes,
        start_time=_nanoseconds(began_s),
    )
    return Span(_trace_of(span.get_span_context()), span)


def current() -> Trace | None:
    """Return the place of the span that an instrumentation of the HTTP server has begun; None where there is none."""
    if _tracer() is None:
        return None
    context = otel.get_current_span().get_span_context()
    return _trace_of(context) if context.is_valid else None


def _tracer() -> Any:
    if not AVAILABLE:
        return None
    provider = otel.get_tracer_provider()
    return None if isinstance(provider, otel.ProxyTracerProvider) else _tracer_of(provider)


@functools.lru_cache(maxsize=1)
def _tracer_of(provider: Any) -> Any:
    return provider.get_tracer(_NAME)


def _context_of(trace: Trace) -> Any:
    parent = otel.SpanContext(
        int(trace.trace_id, 16),
        int(trace.span_id, 16),
        is_remote=True,
        trace_flags=otel.TraceFlags(int(trace.flags, 16)),
        trace_state=otel.TraceState.from_header([trace.state] if trace.state else []),
    )
    return otel.set_span_in_context(otel.NonRecordingSpan(parent), otel_context.Context())


def _trace_of(context: Any) -> Trace:
    return Trace(
        trace_id=f"{context.trace_id:032x}",
        flags=f"{context.trace_flags:02x}",
        state=context.trace_state.to_header(),
        span_id=f"{context.span_id:016x}",
    )


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1e9)
