"""Load one HTTP server over loopback from one thread, a fixed number of callers at a time.

A process of its own in an environment of its own: ``python -m tools.benchmarks.overhead.load PLAN``, the plan as JSON;
prints the outcome as JSON. So it needs the standard library alone, and takes uvloop where it finds it. Requests are
bytes made once, and of an answer it reads the status, Content-Length and the body: it has to cost less than the server
that it measures.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import math
import os
import sys
import time
from array import array
from typing import Any, cast

from tools.benchmarks.overhead.wire import (
    HOST,
    Answer,
    BadAnswerError,
    Outcome,
    Plan,
    percentiles,
    read_answer,
    requests_of,
)

MOST_REFUSALS = 100
"""Connections refused in a row before the server is taken for gone."""


class Load:
    """All callers of one plan, and what they saw."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.start_request = requests_of(plan)
        self.over = False
        self._took_s = array("d")
        self._errors = self._polls = 0
        self._first_error = ""
        self._time_up = False
        self._counts_since = math.inf
        self._end: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._connecting: set[asyncio.Task[None]] = set()

    async def run(self) -> Outcome:
        """Load the server until the time is up or the number of requests is reached.

        Raises:
            ConnectionError: Nothing listens there.
            Exception: What this program itself got wrong.
        """
        loop = asyncio.get_running_loop()
        usual = loop.get_exception_handler()
        loop.set_exception_handler(self._broken)
        callers = [Caller(self) for _ in range(self.plan.callers)]
        for caller in callers:
            self.connect(caller)
        timers = [loop.call_later(self.plan.warm_up_s, self._begin)]
        timers += [loop.call_later(self.plan.warm_up_s + self.plan.seconds, self._stop_in_time)]
        try:
            ended = await self._end
        finally:
            self.over = True
            loop.set_exception_handler(usual)
            for timer in timers:
                timer.cancel()
            for task in list(self._connecting):
                task.cancel()
            for caller in callers:
                caller.abort()
        for caller in callers:
            if caller.started < self._counts_since and self._time_up:
                self.failed("no answer in all the time")
        return self._outcome(ended - self._counts_since)

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End with what went wrong in a callback here: a figure would be none."""
        if not self._end.done():
            self._end.set_exception(context.get("exception") or RuntimeError(context["message"]))

    def connect(self, caller: Caller) -> None:
        """Open the caller's connection, now or once more."""
        task = asyncio.get_running_loop().create_task(self._connect(caller))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def ended(self, well: bool, started: float, polls: int, answer: Answer) -> None:
        """Count a request that came to its end."""
        now = time.perf_counter()
        if not well:
            self.failed(f"{answer.status} {answer.body[:120]!r}")
        elif now >= self._counts_since:
            self._took_s.append(now - started)
            self._polls += polls
            self._check_number()

    def failed(self, why: str) -> None:
        """Count a request that did not; those of the warm-up too, for they are never right."""
        self._errors += 1
        self._first_error = self._first_error or why
        self._check_number()

    def _check_number(self) -> None:
        if len(self._took_s) + self._errors >= self.plan.most_requests:
            self._stop()

    def _begin(self) -> None:
        self._counts_since = time.perf_counter()

    def _stop_in_time(self) -> None:
        self._time_up = True
        self._stop()

    def _stop(self) -> None:
        if not self._end.done():
            self._end.set_result(time.perf_counter())

    async def _connect(self, caller: Caller) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(MOST_REFUSALS):
            try:
                await loop.create_connection(lambda: caller, HOST, self.plan.port)
            except OSError as error:
                self.failed(str(error))
            else:
                return
        if not self._end.done():
            self._end.set_exception(ConnectionError(f"nothing listens on port {self.plan.port}"))

    def _outcome(self, seconds: float) -> Outcome:
        count, seconds = len(self._took_s), max(seconds, 1e-9)
        p50_s, p99_s = percentiles(self._took_s, (0.5, 0.99))
        return Outcome(
            requests=count,
            seconds=seconds,
            requests_per_s=count / seconds,
            p50_ms=p50_s * 1000,
            p99_ms=p99_s * 1000,
            errors=self._errors,
            first_error=self._first_error,
            polls_per_request=self._polls / max(1, count),
            client_cpu=0.0,
        )


class Caller(asyncio.Protocol):
    """One connection with one request under way, opened again where the server closes it."""

    def __init__(self, load: Load) -> None:
        self.started = time.perf_counter()
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._request = load.start_request()
        self._sent = next(self._request)
        self._owed = True
        """Whether an answer is due: a connection lost meanwhile is an error."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what waits for the connection."""
        # uvloop's is no asyncio.Transport.
        self._transport, self._received, self._owed = cast("asyncio.Transport", transport), b"", True
        self._transport.write(self._sent)

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer; send the next request after its last."""
        self._received += data
        try:
            answer = read_answer(self._received)
        except BadAnswerError as error:
            self._load.failed(str(error))
            self._start()
            self._close()
            return
        if answer is not None:
            self._received = b""
            self._go_on(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count what was lost with it, and open it again."""
        if self._load.over:
            return
        if self._owed:
            self._load.failed(f"connection closed: {exc or 'by the server'}")
            self._start()
        self._load.connect(self)

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _go_on(self, answer: Answer) -> None:
        try:
            self._sent = self._request.send(answer)
        except StopIteration as end:
            well, polls = end.value
            self._load.ended(well, self.started, polls, answer)
            self._start()
        if answer.closes:
            self._close()
        elif self._transport is not None and not self._load.over:
            self._transport.write(self._sent)

    def _start(self) -> None:
        self.started = time.perf_counter()
        self._request = self._load.start_request()
        self._sent = next(self._request)

    def _close(self) -> None:
        self._owed = False
        self.abort()


async def generate(plan: Plan) -> Outcome:
    """Run the plan on the running loop."""
    began, used = time.perf_counter(), time.process_time()
    outcome = await Load(plan).run()
    client_cpu = (time.process_time() - used) / (time.perf_counter() - began)
    return dataclasses.replace(outcome, client_cpu=client_cpu)


def main() -> None:
    """Run the plan of the command line."""
    plan = Plan.read(sys.argv[1])
    if plan.core is not None:
        os.sched_setaffinity(0, {plan.core})
    try:
        loop_factory = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        loop_factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        print(json.dumps(dataclasses.asdict(runner.run(generate(plan)))))


if __name__ == "__main__":
    main()
