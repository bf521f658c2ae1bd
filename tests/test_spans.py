"""Traces: a span of each job with the parts of its way below it, and nothing where nobody traces."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aiservices import spans
from aiservices.trace import Trace

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLERS = Trace(TRACE, "01", "shop=1", PARENT)


def provide(monkeypatch: pytest.MonkeyPatch, sampler: sampling.Sampler = sampling.ALWAYS_ON) -> InMemorySpanExporter:
    """Have spans kept until the end of a test; the process's own provider can be set but once."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(otel, "get_tracer_provider", lambda: provider)
    return exporter


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    return provide(monkeypatch)


def finished(exporter: InMemorySpanExporter) -> Sequence[ReadableSpan]:
    return exporter.get_finished_spans()


def test_a_span_is_below_its_parent_and_its_headers_name_it(exporter: InMemorySpanExporter) -> None:
    begun = spans.start("fetch", CALLERS, kind="client", attributes={"server.address": "example.com"}, began_s=10.0)
    headers = begun.trace.headers()
    assert begun.recording
    begun.end(ended_s=12.5)
    (span,) = finished(exporter)
    context, parent = span.get_span_context(), span.parent
    assert context is not None
    assert parent is not None
    assert (f"{context.trace_id:032x}", f"{parent.span_id:016x}", parent.is_remote) == (TRACE, PARENT, True)
    assert headers["traceparent"].startswith(f"00-{TRACE}-{context.span_id:016x}-0")
    assert headers["tracestate"] == "shop=1"
    assert (span.name, span.kind, span.start_time, span.end_time) == (
        "fetch",
        otel.SpanKind.CLIENT,
        10_000_000_000,
        12_500_000_000,
    )
    assert (dict(span.attributes or {}), span.status.is_ok) == ({"server.address": "example.com"}, True)


def test_a_failure_is_one_word(exporter: InMemorySpanExporter) -> None:
    spans.start("fetch", CALLERS).end(error="timeout")
    (span,) = finished(exporter)
    assert (dict(span.attributes or {}), span.status.is_ok) == ({"error.type": "timeout"}, False)


def test_what_is_not_sampled_is_told_onwards_but_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = provide(monkeypatch, sampling.ALWAYS_OFF)
    begun = spans.start("fetch", CALLERS)
    assert not begun.recording
    begun.end(error="timeout")
    assert finished(exporter) == ()
    assert begun.trace.headers()["traceparent"].split("-")[1::2] == [TRACE, "00"]
    assert begun.trace.span_id != PARENT


def test_the_span_of_an_instrumented_server_is_the_callers_place(exporter: InMemorySpanExporter) -> None:
    assert spans.current() is None
    with otel.get_tracer_provider().get_tracer("server").start_as_current_span("POST /run") as span:
        found = spans.current()
    assert found is not None
    assert (int(found.trace_id, 16), int(found.span_id, 16)) == (
        span.get_span_context().trace_id,
        span.get_span_context().span_id,
    )


@pytest.mark.parametrize("missing", [True, False], ids=["no package", "no provider"])
def test_where_nobody_traces_headers_have_a_span_of_their_own(missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing:
        monkeypatch.setattr(spans, "AVAILABLE", False)
        monkeypatch.delattr(spans, "otel")
    assert not spans.enabled()
    assert spans.current() is None
    first, second = spans.start("fetch", CALLERS), spans.start("fetch", CALLERS)
    assert len({PARENT, first.trace.span_id, second.trace.span_id}) == 3
    assert (first.trace.trace_id, first.trace.state, first.recording) == (TRACE, "shop=1", False)
    first.end(error="timeout")


def test_the_core_imports_without_the_package() -> None:
    program = "import sys; sys.modules['opentelemetry'] = None; import aiservices.registry, aiservices.spans as spans"
    subprocess.run([sys.executable, "-c", f"{program}; assert not spans.AVAILABLE"], timeout=30, check=True)
