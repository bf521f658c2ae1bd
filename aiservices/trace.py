"""W3C Trace Context: which trace a job belongs to, as headers give and take it.

https://www.w3.org/TR/trace-context/: ``traceparent`` is ``00-TRACE-SPAN-FLAGS`` in lower-case hexadecimal,
``tracestate`` what the systems on the way noted, passed on as it came.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import attrs

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

MAX_STATE_CHARS = 512
"""A longer ``tracestate`` is left out; the specification asks for at least as much to be passed on."""

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE = re.compile(r"[\x20-\x7e]+")
_SAMPLED = "01"
_SPAN_DIGITS = 16


@attrs.frozen
class Trace:
    """A place in a trace.

    Attributes:
        trace_id: 32 hexadecimal digits.
        flags: two; ``01`` where it is sampled.
        state: ``tracestate``, or empty.
        span_id: 16 hexadecimal digits; by default those that the trace's id begins with, for a trace of our own.
    """

    trace_id: str
    flags: str = _SAMPLED
    state: str = ""
    span_id: str = attrs.Factory(lambda self: self.trace_id[:_SPAN_DIGITS], takes_self=True)

    def child(self) -> Trace:
        """Return a place below this one, with a span id that nobody else has."""
        return attrs.evolve(self, span_id=os.urandom(_SPAN_DIGITS // 2).hex())

    def headers(self) -> dict[str, str]:
        """Return the headers of a request that is sent from here."""
        headers = {TRACEPARENT: f"00-{self.trace_id}-{self.span_id}-{self.flags}"}
        if self.state:
            headers[TRACESTATE] = self.state
        return headers


def read_trace(headers: Mapping[str, str]) -> Trace | None:
    """Return the caller's trace; None where it gave none, or one that is not valid.

    Args:
        headers: of the request, case-insensitive.
    """
    given = headers.get(TRACEPARENT)
    found = None if given is None else _PARENT.fullmatch(given)
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    state = headers.get(TRACESTATE, "")
    kept = state if len(state) <= MAX_STATE_CHARS and _STATE.fullmatch(state) else ""
    # Of the flags, only "sampled" is defined in the version that we send.
    return Trace(trace_id, f"{int(flags, 16) & 1:02x}", kept, span_id)
