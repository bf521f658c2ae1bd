"""Run jobs that end in every way, with webhooks, hang-ups, cancellations, retries and reloads, and see what is left."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import attrs
from aiohttp import web

from tools.serving import serving

CALLERS = 48
KEEP_S = 5.0
"""How long results are remembered: a look at what is left waits for so long."""

KEPT_ALIVE_S = 16.0
"""How long idle connections to receivers of webhooks stay open, and some more."""

MAX_GROWTH = 0.05
"""Of resident memory, from the first look to the last."""

LONG_S = 3.0
"""More than ``timeout_s`` of the service that gets it."""

SETTINGS = """
[server]
port = 0
profile = "prove"
log_level = "error"

[fetch]
allow_hosts = ["{hook}"]

[webhook]
attempts = 2
retry_wait_s = 0.1

[journal]
path = "{folder}/jobs.db"

[services.quick]
handler = "aiservices.handlers.echo:Echo"
device = "cpu"
max_batch_size = 16
keep_results_s = {keep_s}

[services.limited]
handler = "aiservices.handlers.echo:Echo"
device = "cpu"
max_batch_size = 1
timeout_s = 1.0
keep_results_s = {keep_s}

[services.reloaded]
handler = "aiservices.handlers.echo:Echo"
device = "cpu"
idle_s = 0.2
keep_results_s = {keep_s}

[services.census]
handler = "tools.prove.soak.census:Census"
device = "cpu"
keep_results_s = 1.0

[profiles.prove.services]
quick = {{}}
limited = {{}}
reloaded = {{}}
census = {{}}
"""

WAYS = {
    "plain": 50, "waited for": 15, "failed": 8, "failed and retried": 5, "cancelled": 6, "streamed": 4,
    "hung up on": 4, "large": 2, "timed out": 0.2, "reloaded": 0.5, "announced": 5,
}  # fmt: skip
"""How a job goes, and how many of a hundred or so go so."""


@attrs.define
class Soak:
    """Jobs of callers of one server, and what is left of them.

    Args:
        url: of the server.
        hook: gets webhooks.
        chance: decides.
    """

    url: str
    hook: str
    chance: random.Random
    ways: Counter[str] = attrs.Factory(Counter)
    ends: Counter[str] = attrs.Factory(Counter)
    breaches: list[str] = attrs.Factory(list)
    _session: aiohttp.ClientSession = attrs.field(init=False)

    async def run(self, jobs: int) -> None:
        """Have so many jobs done."""
        left = iter(range(jobs))

        async def caller() -> None:
            for _ in left:
                way = self.chance.choices([*WAYS], [*WAYS.values()])[0]
                self.ways[way] += 1
                await self._job(way)

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as self._session:
            await asyncio.gather(*(caller() for _ in range(CALLERS)))

    async def census(self) -> dict[str, int]:
        """Wait until everything has ended and is forgotten; count what the server holds."""
        await asyncio.sleep(KEEP_S + KEPT_ALIVE_S)
        async with aiohttp.ClientSession() as self._session:
            shown = await self._ask("POST", "/v2/census/runsync", json={"input": {}})
        return dict(shown["output"])

    async def _job(self, way: str) -> None:
        service = {"timed out": "limited", "reloaded": "reloaded"}.get(way, "quick")
        given: dict[str, Any] = {"text": "a mug" if way != "large" else "mug " * 25_000}
        given |= {"fail": True} if way.startswith("failed") else {}
        given |= {"chunks": 3} if way == "streamed" else {}
        given |= {"seconds": {"timed out": LONG_S, "cancelled": 0.05, "hung up on": 0.05}.get(way, 0.0)}
        body: dict[str, Any] = {"input": given}
        if way == "announced":
            body["webhook"] = self.hook
        if way == "hung up on":
            await self._hang_up(f"/v2/{service}/runsync", body)
        elif way == "waited for":
            self._note(await self._ask("POST", f"/v2/{service}/runsync", json=body), "COMPLETED")
        else:
            job = await self._ask("POST", f"/v2/{service}/run", json=body)
            await self._follow(service, job["id"], way)

    async def _follow(self, service: str, job_id: str, way: str) -> None:
        if way == "cancelled":
            await self._ask("POST", f"/v2/{service}/cancel/{job_id}")
        elif way == "streamed":
            await self._ask("GET", f"/v2/{service}/stream/{job_id}")
        shown = await self._ask("GET", f"/v2/{service}/status-sync/{job_id}")
        if way == "failed and retried":
            await self._ask("POST", f"/v2/{service}/retry/{job_id}")
            shown = await self._ask("GET", f"/v2/{service}/status-sync/{job_id}")
        self._note(shown, {"failed": "FAILED", "failed and retried": "FAILED", "timed out": "TIMED_OUT"}.get(way, ""))

    def _note(self, shown: dict[str, Any], expected: str) -> None:
        self.ends[shown["status"]] += 1
        allowed = (expected,) if expected else ("COMPLETED", "CANCELLED")
        if shown["status"] not in allowed:
            self.breaches.append(f"{shown['status']} instead of {' or '.join(allowed)}: {shown}"[:300])

    async def _hang_up(self, path: str, body: dict[str, Any]) -> None:
        timeout = aiohttp.ClientTimeout(total=self.chance.uniform(0.001, 0.04))
        try:
            async with self._session.post(self.url + path, json=body, timeout=timeout) as answer:
                await answer.read()
        except (TimeoutError, aiohttp.ClientError):
            pass

    async def _ask(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        async with self._session.request(method, self.url + path, **arguments) as answer:
            shown: dict[str, Any] = await answer.json()
            if answer.status != 200:
                self.breaches.append(f"{method} {path}: {answer.status} {shown}"[:300])
            return {"status": "none", "id": "none", **shown}


@asynccontextmanager
async def receiver() -> AsyncIterator[tuple[str, Counter[int]]]:
    """Answer two of three webhooks with 200; give the URL and how often each status was answered."""
    turns, answered = itertools.cycle((200, 200, 500)), Counter[int]()

    async def receive(request: web.Request) -> web.Response:
        await request.read()
        status = next(turns)
        answered[status] += 1
        return web.Response(status=status)

    app = web.Application()
    app.router.add_post("/hook", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook", answered
    finally:
        await runner.cleanup()


async def prove(folder: Path, jobs: int, first: int, seed: int) -> int:
    """Run it; the number of breaches.

    Args:
        folder: for settings and journal.
        jobs: in all.
        first: after so many the first look is taken.
        seed: of what chance decides.
    """
    settings = folder / "services.toml"
    async with receiver() as (hook, answered):
        host = hook.removeprefix("http://").partition("/")[0]
        settings.write_text(SETTINGS.format(hook=host, folder=folder, keep_s=KEEP_S), encoding="utf-8")
        async with serving(settings) as server:
            soak = Soak(server.url, hook, random.Random(seed))
            began = time.monotonic()
            await soak.run(first)
            before = await soak.census()
            await soak.run(jobs - first)
            after = await soak.census()
            seconds = time.monotonic() - began
    print(f"{jobs} jobs in {seconds:.0f} s; webhooks answered {dict(answered)}")
    print("ways  ", dict(soak.ways))
    print("ends  ", dict(soak.ends))
    print(f"after {first} jobs: {before}")
    print(f"after {jobs} jobs: {after}")
    breaches = soak.breaches + grown(before, after) + kept(folder / "jobs.db")
    print(*breaches[:20], sep="\n", end="\n" if breaches else "")
    return len(breaches)


def grown(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Say what there is more of than there may be."""
    bounds = {name: count * (1 + MAX_GROWTH) if name == "resident_bytes" else count for name, count in before.items()}
    return [f"{name}: {after[name]}, {bound:.0f} are allowed" for name, bound in bounds.items() if after[name] > bound]


def kept(journal: Path) -> list[str]:
    """Say what a stopped server's journal still has, although everything was forgotten."""
    connection = sqlite3.connect(journal)
    # What counts last is the look itself.
    rows = connection.execute("SELECT count(*) FROM jobs WHERE service != 'census'").fetchone()[0]
    connection.close()
    files = len([*journal.parent.glob("jobs.db.blobs/*/*")])
    return [f"the journal kept {rows} rows and {files} files"] if rows or files else []


def main(arguments: Sequence[str]) -> int:
    """Run the proof; 1 if something did not hold."""
    parser = argparse.ArgumentParser(prog="scripts/prove soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=200_000, help="how many in all")
    parser.add_argument("--first", type=int, default=20_000, help="after so many the first look at memory is taken")
    parser.add_argument("--seed", type=int, default=0, help="of everything that chance decides")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="prove-soak-") as folder:
        breaches = asyncio.run(prove(Path(folder), given.jobs, given.first, given.seed))
    print("held" if not breaches else f"{breaches} breaches")
    return int(breaches > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
