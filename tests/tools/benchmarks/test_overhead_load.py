from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import socket

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tools.benchmarks.overhead.load import generate
from tools.benchmarks.overhead.wire import HOST, Answer, BadAnswerError, Call, Plan, percentiles, read_answer

BODY = '{"input":{"text":"some words"}}'


class Jobs:
    """A server of jobs: ``polls`` states before each one's end, and whatever else ``answer`` says of the n-th call."""

    def __init__(self, polls: int = 0) -> None:
        self.calls = 0
        self.states: dict[str, int] = {}
        self._polls = polls

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        return await self.work(request)

    async def work(self, request: web.Request) -> web.StreamResponse:
        given = await request.json()
        return web.json_response({"status": "COMPLETED", "output": given["input"]})

    async def run(self, request: web.Request) -> web.Response:
        self.calls += 1
        job = f"job-{self.calls}"
        self.states[job] = 0
        return web.json_response({"id": job, "status": "IN_QUEUE"})

    async def status(self, request: web.Request) -> web.Response:
        job = request.match_info["id"]
        self.states[job] += 1
        ended = self.states[job] > self._polls
        return web.json_response({"id": job, "status": "COMPLETED" if ended else "IN_PROGRESS", "output": "some words"})

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/runsync", self.answer)
        app.router.add_post("/run", self.run)
        app.router.add_get("/status/{id}", self.status)
        return app


async def load(jobs: Jobs, plan: Plan) -> dict[str, float | str]:
    async with TestServer(jobs.app(), host=HOST) as server:
        assert server.port is not None
        return dataclasses.asdict(await generate(dataclasses.replace(plan, port=server.port)))


def plan(callers: int = 1, most_requests: int = 40, path: str = "/runsync") -> Plan:
    """It ends by number long before its time."""
    call = Call("POST", path, BODY)
    return Plan(0, callers, warm_up_s=0, seconds=50, first=call, expect="some words", most_requests=most_requests)


def polling(callers: int = 1) -> Plan:
    poll = Call("GET", "/status/{id}")
    return dataclasses.replace(plan(callers, path="/run"), poll=poll, done="COMPLETED")


@pytest.mark.parametrize("callers", [1, 8])
async def test_each_answered_request_counts_once(callers: int) -> None:
    jobs = Jobs()
    outcome = await load(jobs, plan(callers))
    assert (outcome["requests"], outcome["errors"], outcome["polls_per_request"]) == (40, 0, 0)
    assert 40 <= jobs.calls <= 40 + callers
    assert isinstance(outcome["seconds"], float)
    assert outcome["requests_per_s"] == pytest.approx(40 / outcome["seconds"])
    assert 0 < float(outcome["p50_ms"]) <= float(outcome["p99_ms"])  # of requests that may have begun before the clock


@pytest.mark.parametrize("callers", [1, 8])
async def test_a_job_counts_once_it_was_seen_to_have_ended(callers: int) -> None:
    jobs = Jobs(polls=3)
    outcome = await load(jobs, polling(callers))
    assert (outcome["requests"], outcome["errors"], outcome["polls_per_request"]) == (40, 0, 4)
    assert sum(seen == 4 for seen in jobs.states.values()) >= 40


async def test_the_output_is_asked_for_where_the_state_does_not_hold_it() -> None:
    asked = dataclasses.replace(polling(), result=Call("POST", "/runsync", BODY))
    jobs = Jobs()
    outcome = await load(jobs, asked)
    assert (outcome["requests"], outcome["errors"]) == (40, 0)
    assert jobs.calls >= 80


class Failing(Jobs):
    """Every fourth call goes wrong, in this way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self._way = way

    async def work(self, request: web.Request) -> web.StreamResponse:
        if self.calls % 4:
            return await super().work(request)
        if self._way == "lost":
            assert request.transport is not None
            request.transport.close()
        elif self._way == "chunked":
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            return response
        elif self._way == "closing":
            response = web.json_response({"output": "some words"})
            response.force_close()
            return response
        return web.Response(status=503, text="some words") if self._way == "refused" else web.Response(text="others")


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("refused", "503 b'some words'"),
        ("wrong", "200 b'others'"),
        ("lost", "connection closed: by the server"),
        ("chunked", "no status or no Content-Length: b'HTTP/1.1 200 OK"),
    ],
)
async def test_what_is_no_good_answer_is_an_error_and_the_next_request_goes_on(way: str, why: str) -> None:
    outcome = await load(Failing(way), plan())
    assert (outcome["requests"], outcome["errors"]) == (30, 10)
    assert str(outcome["first_error"]).startswith(why)


async def test_a_connection_that_the_server_closes_in_order_is_opened_again() -> None:
    outcome = await load(Failing("closing"), plan(callers=2))
    assert (outcome["requests"], outcome["errors"]) == (40, 0)


async def test_a_job_that_failed_is_an_error() -> None:
    class Broken(Jobs):
        async def status(self, request: web.Request) -> web.Response:
            return web.json_response({"status": "FAILED", "error": "some words"})

    outcome = await load(Broken(), polling())
    assert (outcome["requests"], outcome["errors"]) == (0, 40)


async def test_a_submission_without_an_id_is_an_error() -> None:
    outcome = await load(Jobs(), dataclasses.replace(polling(), first=Call("POST", "/runsync", BODY)))
    assert (outcome["requests"], outcome["errors"]) == (0, 40)


async def test_a_server_that_never_answers_is_an_error_for_each_caller() -> None:
    never = asyncio.Event()

    class Silent(Jobs):
        async def work(self, request: web.Request) -> web.StreamResponse:
            await never.wait()
            return await super().work(request)

    outcome = await load(Silent(), dataclasses.replace(plan(callers=3), warm_up_s=0.05, seconds=0.05))
    assert (outcome["requests"], outcome["errors"], outcome["first_error"]) == (0, 3, "no answer in all the time")
    assert math.isnan(float(outcome["p50_ms"]))


async def test_what_is_done_in_the_warm_up_does_not_count() -> None:
    jobs = Jobs()
    outcome = await load(jobs, dataclasses.replace(plan(), warm_up_s=0.1, seconds=50))
    assert outcome["requests"] == 40
    assert jobs.calls > 41


async def test_where_nothing_listens_it_says_so() -> None:
    with socket.socket() as closed:
        closed.bind((HOST, 0))
        with pytest.raises(ConnectionError, match="nothing listens"):
            await generate(dataclasses.replace(plan(most_requests=1000), port=closed.getsockname()[1]))


async def test_a_fault_of_its_own_gives_no_figure() -> None:
    with pytest.raises(TypeError):
        await load(Jobs(), dataclasses.replace(plan(), most_requests="many"))  # type: ignore[arg-type]


def test_a_plan_travels_as_json() -> None:
    sent = polling(callers=3)
    assert Plan.read(json.dumps(dataclasses.asdict(sent))) == sent


WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nX: y\r\n\r\nbody"


def test_an_answer_is_read_once_all_of_it_is_there() -> None:
    assert [read_answer(WHOLE[:end]) for end in range(len(WHOLE))] == [None] * len(WHOLE)
    assert read_answer(WHOLE) == Answer(200, b"body", closes=False)
    assert read_answer(WHOLE.replace(b"X: y", b"Connection: close")) == Answer(200, b"body", closes=True)


def test_what_is_no_http_is_refused() -> None:
    with pytest.raises(BadAnswerError):
        read_answer(b"SSH-2.0\r\n\r\n")


def test_a_length_in_the_body_is_no_header() -> None:
    with pytest.raises(BadAnswerError):
        read_answer(b"HTTP/1.1 200 OK\r\n\r\n\r\ncontent-length: 4\r\n")


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles([*range(1, 101)], (0.5, 0.99, 1.0)) == [50, 99, 100]
    assert percentiles([3.0], (0.5, 0.99)) == [3.0, 3.0]
    assert all(math.isnan(value) for value in percentiles([], (0.5, 0.99)))
