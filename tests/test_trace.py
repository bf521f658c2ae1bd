"""Trace context: taken from a request where it is valid, passed on with a span of its own."""

from __future__ import annotations

import pytest

from aiservices.trace import MAX_STATE_CHARS, Trace, read_trace

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("parent", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", "01"),
        (f"00-{TRACE}-{SPAN}-00", "00"),
        (f"00-{TRACE}-{SPAN}-ff", "01"),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-next", "01"),
    ],
)
def test_a_valid_parents_trace_goes_on(parent: str, flags: str) -> None:
    trace = read_trace({"traceparent": parent, "tracestate": "shop=1"})
    assert trace is not None
    assert trace == Trace(TRACE, flags, "shop=1", SPAN)
    headers = trace.child().headers()
    version, trace_id, span_id, sent_flags = headers["traceparent"].split("-")
    assert (version, trace_id, sent_flags, headers["tracestate"]) == ("00", TRACE, flags, "shop=1")
    assert span_id != SPAN


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_another_parent_is_none(parent: str) -> None:
    assert read_trace({"traceparent": parent, "tracestate": "shop=1"}) is None


def test_without_a_parent_there_is_no_trace() -> None:
    assert read_trace({"tracestate": "shop=1"}) is None


def test_each_child_has_a_span_of_its_own_and_no_state_where_there_is_none() -> None:
    first, second = Trace(TRACE).child().headers(), Trace(TRACE).child().headers()
    assert first != second
    assert list(first) == ["traceparent"]


@pytest.mark.parametrize(("state", "kept"), [("a" * MAX_STATE_CHARS, True), ("a" * 513, False), ("a=\u00e9", False)])
def test_the_state_is_bounded(state: str, kept: bool) -> None:
    trace = read_trace({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": state})
    assert trace == Trace(TRACE, "01", state if kept else "", SPAN)
