"""Callers who submit, look, cancel and retry while the server dies under them, and a receiver of webhooks."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from tools.prove.crash.history import Accepted, Asked, Delivery, History, Sight, Wish

KEEP_S = {"line": 86_400.0, "batch": 86_400.0, "brief": 2.0}
"""The services, and how long each remembers a job."""

BURST = 6
"""Most jobs that a caller submits before it looks at them."""

LARGE_BYTES = 100_000
"""Above this a payload gets a file of its own beside the journal."""

REQUEST_S = 10.0
DOWN_S = 0.02
"""Pause before the next try while the server is down."""

UNHEALTHY = 0.05
"""Part of the webhooks that the receiver answers with 500."""

UNREACHABLE = (aiohttp.ClientError, TimeoutError, ConnectionError)


@asynccontextmanager
async def receiver(history: History, chance: random.Random) -> AsyncIterator[str]:
    """Write down each webhook that comes; give its URL."""

    async def receive(request: web.Request) -> web.Response:
        body = await request.json()
        accepted = chance.random() >= UNHEALTHY
        history.deliveries.append(Delivery(message=request.headers["webhook-id"], body=body, accepted=accepted))
        return web.Response(status=200 if accepted else 500)

    app = web.Application(client_max_size=2**24)
    app.router.add_post("/hook", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    finally:
        await runner.cleanup()


class Callers:
    """Some callers of one server, whose port never changes.

    Args:
        url: of the server.
        hook: of the receiver.
        history: gets everything that is seen.
        chance: decides what they ask for.
        crashes: part of the jobs that kill the server.
    """

    def __init__(self, url: str, hook: str, history: History, chance: random.Random, crashes: float) -> None:
        self._url, self._hook, self._history = url, hook, history
        self._chance, self._crashes = chance, crashes
        self._numbers = itertools.count()
        self._services: dict[str, str] = {}
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(REQUEST_S))
        self.leaving = False
        """Set to have them submit nothing more."""

    async def close(self) -> None:
        """Hang up."""
        await self._session.close()

    async def submit(self) -> None:
        """Be one caller until told to leave: a burst of jobs, a look at each, now and then a cancellation or retry."""
        while not self.leaving:
            burst = [await self._run(self._wish()) for _ in range(self._chance.randint(1, BURST))]
            for job in filter(None, burst):
                if self._chance.random() < 0.1:
                    await self._ask("cancel", job.job_id)
                shown = await self.look(job.job_id)
                if shown and shown["status"] == "FAILED" and self._chance.random() < 0.5:
                    await self._ask("retry", job.job_id)
                    await self.look(job.job_id)

    async def look_back(self) -> None:
        """Look at any of the jobs again and again."""
        while not self.leaving:
            if self._history.accepted:
                await self.look(self._chance.choice(self._history.accepted[-300:]).job_id)
                await self.look(self._chance.choice(self._history.accepted).job_id)
            await asyncio.sleep(DOWN_S)

    async def look(self, job_id: str) -> Mapping[str, Any] | None:
        """Look at one job; None if it was not found, or the server is down."""
        sent_ns = time.monotonic_ns()
        status, shown = await self._request("GET", f"/v2/{self._services[job_id]}/status/{job_id}")
        if status not in (200, 404):
            return None
        found = shown if status == 200 else None
        answered_ns = time.monotonic_ns()
        self._history.sights.append(Sight(job_id=job_id, sent_ns=sent_ns, answered_ns=answered_ns, shown=found))
        return found

    def _wish(self) -> Wish:
        chance = self._chance
        service = chance.choice([*KEEP_S])
        outcome = "crash" if chance.random() < self._crashes else "fail" if chance.random() < 0.1 else "ok"
        token = f"t{next(self._numbers)}"
        asked: dict[str, Any] = {"token": token, "outcome": outcome, "seconds": chance.choice([0, 0, 0, 0.01, 0.05])}
        if chance.random() < 0.1:
            asked["size"] = LARGE_BYTES + chance.randint(0, 1000)
        if chance.random() < 0.1:
            asked["padding"] = token * (LARGE_BYTES // len(token))
        return Wish(
            token=token,
            service=service,
            input=asked,
            webhook=chance.random() < 0.5,
            key=service != "brief" and chance.random() < 0.3,
            keep_s=KEEP_S[service],
            ordered=service == "line",
        )

    async def _run(self, wish: Wish) -> Accepted | None:
        """Submit a job; one with an idempotency key until an answer comes, another once."""
        body = {"input": wish.input, **({"webhook": self._hook} if wish.webhook else {})}
        headers = {"Idempotency-Key": wish.token} if wish.key else {}
        job, sent_ns = None, time.monotonic_ns()
        while True:
            self._history.submitted[wish.token] += 1
            status, shown = await self._request("POST", f"/v2/{wish.service}/run", json=body, headers=headers)
            if status == 200:
                answered_ns = time.monotonic_ns()
                job = Accepted(wish=wish, job_id=shown["id"], sent_ns=sent_ns, answered_ns=answered_ns)
                self._history.accepted.append(job)
                self._services[job.job_id] = wish.service
            # Half of those that have a key ask again though they were answered.
            if not wish.key or self.leaving or (job and self._chance.random() < 0.5):
                return job

    async def _ask(self, what: str, job_id: str) -> None:
        sent_ns = time.monotonic_ns()
        status, shown = await self._request("POST", f"/v2/{self._services[job_id]}/{what}/{job_id}")
        said = shown["status"] if status == 200 else None
        answered_ns = time.monotonic_ns()
        self._history.asked.append(
            Asked(what=what, job_id=job_id, sent_ns=sent_ns, answered_ns=answered_ns, status=said)
        )

    async def _request(self, method: str, path: str, **arguments: Any) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer; 0 while the server is down."""
        try:
            async with self._session.request(method, self._url + path, **arguments) as answer:
                return answer.status, await answer.json()
        except UNREACHABLE:
            await asyncio.sleep(DOWN_S)
            return 0, {}
