"""What the load generator sends, and how it reads the answers; the standard library alone, as load.py says."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

HOST = "127.0.0.1"
ID = re.compile(rb'"(?:task_)?id"\s*:\s*"([^"]+)"')
STATE = re.compile(rb'"status"\s*:\s*"(\w+)"')
ENDED_BADLY = {b"failed", b"cancelled", b"canceled", b"timed_out"}
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Call:
    """One HTTP request; ``{id}`` in the path stands for the job's id."""

    method: str
    path: str
    body: str = ""

    def encoded(self) -> bytes:
        """Return the bytes to send."""
        body = self.body.encode()
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {HOST}", "Accept: */*"]
        if self.method == "POST":
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to send, how many callers at a time, and for how long.

    Args:
        port: Where the server listens.
        callers: Connections, each with one request under way.
        warm_up_s: Seconds before what is counted.
        seconds: Seconds that are counted.
        first: The call that starts a request.
        expect: Text that the last answer has to hold.
        poll: The call that tells a job's state, sent again at once until the state is `done`; none: `first` is all.
        done: The state of a job that ended well.
        result: A further call that gets the output, where the state's answer does not hold it.
        most_requests: Requests after which it ends before its time.
        core: The core to stay on.
    """

    port: int
    callers: int
    warm_up_s: float
    seconds: float
    first: Call
    expect: str
    poll: Call | None = None
    done: str = ""
    result: Call | None = None
    most_requests: int = 1_000_000
    core: int | None = None

    @classmethod
    def read(cls, text: str) -> Plan:
        """Read it from JSON."""
        fields: dict[str, Any] = json.loads(text)
        calls = {name: fields[name] and Call(**fields[name]) for name in ("first", "poll", "result")}
        return cls(**{**fields, **calls})


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it; `requests` are those that ended well in the seconds that counted.

    `client_cpu` is this process's share of one core: near 1, it measured itself and not the server.
    """

    requests: int
    seconds: float
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    first_error: str
    polls_per_request: float
    client_cpu: float


class Answer(NamedTuple):
    """One answer of the server."""

    status: int
    body: bytes
    closes: bool


class BadAnswerError(Exception):
    """Not HTTP, or not as this program reads it."""


def read_answer(received: bytes) -> Answer | None:
    """Read one answer; None while part of it is missing.

    Raises:
        BadAnswerError: It is none, or has no Content-Length.
    """
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    status, length = _STATUS.match(received), _LENGTH.search(received, 0, head_end)
    if status is None or length is None:
        raise BadAnswerError(f"no status or no Content-Length: {received[:80]!r}")
    end = head_end + 4 + int(length[1])
    if len(received) < end:
        return None
    return Answer(int(status[1]), received[head_end + 4 : end], _CLOSE.search(received, 0, head_end) is not None)


Request = Generator[bytes, Answer, tuple[bool, int]]
"""Gives bytes to send, takes the answer to each, and returns whether it ended well and how often it polled."""


def requests_of(plan: Plan) -> Callable[[], Request]:
    """Return what starts a request of the plan."""
    first, expect, done = plan.first.encoded(), plan.expect.encode(), plan.done.encode()
    poll = plan.poll.encoded().split(b"{id}") if plan.poll else None
    result = plan.result.encoded().split(b"{id}") if plan.result else None

    def request() -> Request:
        answer, polls = (yield first), 0
        found = ID.search(answer.body) if poll else None
        if poll and found is None:
            return False, 0
        while poll and found:
            answer = yield found[1].join(poll)
            polls += 1
            state = STATE.search(answer.body)
            if answer.status != 200 or state is None or state[1].lower() in ENDED_BADLY:
                return False, polls
            if state[1] == done:
                break
        if result and found:
            answer = yield found[1].join(result)
        return answer.status == 200 and expect in answer.body, polls

    return request


def percentiles(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Give the values (nearest rank) below which these shares of all lie; NaN where there are none."""
    ordered = sorted(values)
    if not ordered:
        return [math.nan for _ in shares]
    return [ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in shares]
