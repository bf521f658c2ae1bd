"""RunPod's side of the worker protocol, on loopback: hands out jobs, takes answers, sends stop signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

POLL_S = 0.25
"""How long a question is held open. RunPod's own hold is longer; a short one lets a worker stop soon."""

KEY = "control-plane-key"


class ControlPlane:
    """One endpoint's queue and what its workers said."""

    def __init__(self) -> None:
        self.queue: deque[dict[str, Any]] = deque()
        self.taken: list[str] = []
        self.answers: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.progress: defaultdict[str, list[Any]] = defaultdict(list)
        self.chunks: defaultdict[str, list[Any]] = defaultdict(list)
        self.batches: list[int] = []
        self.pings: list[str | None] = []
        self.busy = False
        self.open_questions = 0
        self.hold_s = POLL_S
        self.stops: deque[str] = deque()
        self._changed = asyncio.Condition()
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.add_routes(
            [
                web.get("/job-take/{pod}", self._take),
                web.get("/job-take-batch/{pod}", self._take),
                web.get("/job-stop/{pod}", self._stop),
                web.post("/job-done/{pod}/{job}", self._done),
                web.post("/job-stream/{pod}/{job}", self._stream),
                web.get("/ping/{pod}", self._ping),
            ]
        )
        self._server = TestServer(app)

    async def start(self) -> None:
        await self._server.start_server()

    async def close(self) -> None:
        await self._server.close()

    def environment(self) -> dict[str, str]:
        """What RunPod sets in a worker's container."""
        base = str(self._server.make_url("/")).rstrip("/")
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_AI_API_KEY": KEY,
            "RUNPOD_POD_ID": "pod-1",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",  # one of them asks the internet
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    async def add(self, *jobs: dict[str, Any]) -> None:
        async with self._changed:
            self.queue.extend(jobs)
            self._changed.notify_all()

    async def stop(self, job_id: str) -> None:
        async with self._changed:
            self.stops.append(job_id)
            self._changed.notify_all()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 40.0) -> None:
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(condition)

    def answer(self, job_id: str) -> dict[str, Any]:
        """The only answer of a job."""
        (answer,) = self.answers[job_id]
        return answer

    async def _held(self, condition: Callable[[], bool], hold_s: float = POLL_S) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(hold_s):
                await self._changed.wait_for(condition)

    async def _take(self, request: web.Request) -> web.Response:
        assert request.query["gpu"] == "none"
        batch = "job-take-batch" in request.path
        async with self._changed:
            self.busy = request.query["job_in_progress"] == "1"
            self.open_questions += 1
            self._changed.notify_all()
            await self._held(lambda: bool(self.queue), self.hold_s)
            self.open_questions -= 1
            count = min(len(self.queue), int(request.query.get("batch_size", 1)))
            jobs = [self.queue.popleft() for _ in range(count)]
            self.taken += [job["id"] for job in jobs]
            self._changed.notify_all()
        if not jobs:
            return web.Response(status=204)
        self.batches.append(len(jobs))
        return web.json_response(jobs if batch else jobs[0])

    async def _stop(self, request: web.Request) -> web.Response:
        async with self._changed:
            await self._held(lambda: bool(self.stops))
            stops, self.stops = list(self.stops), deque()
        return web.json_response({"jobsToStop": stops}) if stops else web.Response(status=204)

    async def _done(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        assert request.query["isStream"] in ("true", "false")
        async with self._changed:
            kind = self.progress if body.get("status") == "IN_PROGRESS" else self.answers
            kind[request.match_info["job"]].append(body)
            self._changed.notify_all()
        return web.Response()

    async def _stream(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        async with self._changed:
            self.chunks[request.match_info["job"]].append(body["output"])
            self._changed.notify_all()
        return web.Response()

    async def _ping(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == KEY
        async with self._changed:
            self.pings.append(request.query.get("job_id"))
            self._changed.notify_all()
        return web.Response()
