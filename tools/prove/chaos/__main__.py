"""Go through bad days: no memory, hangs, crashes, a full disk, dead receivers and stores, signals at random moments.

Each run is a server of its own, started again like by a supervisor whenever it ends. Every job whose acceptance was
answered has to end, once, and its webhook to arrive where there is somebody.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import attrs

from tools.benchmarks.overhead.servers import free_port
from tools.prove.chaos.days import DAYS, TROUBLED, Day, may_mount, small_disk
from tools.prove.crash.callers import UNREACHABLE, receiver
from tools.prove.crash.history import ENDED, Accepted, Checker, History, Sight, Wish
from tools.serving import NotStarted, Server, start

CALLERS = 6
LOAD_S = 1.0
"""How long jobs come."""

END_LIMIT_S = 40.0
"""For everything to end after that: a job that hangs does so at each of its attempts."""

MAX_ATTEMPTS = 2
KEEP_S = 86_400.0
DOCUMENTED = frozenset({200, 429, 503})
"""What ``run`` may answer here; ``status`` never anything but 200, or 503 while the server starts."""

SETTINGS = """
[server]
port = {port}
profile = "prove"
log_level = "warning"
log_format = "json"
grace_s = 0.5

[fetch]
allow_hosts = ["127.0.0.1"]

[webhook]
attempts = 2
retry_wait_s = 0.1
timeout_s = 0.5

[outputs]
bucket = "{bucket}"
endpoint_url = "http://127.0.0.1:{closed}"
access_key_id = "key"
secret_access_key = "secret"
max_inline_bytes = 1000
timeout_s = 1.0

[journal]
path = "{disk}/jobs.db"

[services.trouble]
handler = "tools.prove.chaos.trouble:Trouble"
device = "cpu"
max_batch_size = 4
timeout_s = 1.0
hang_s = 0.5
max_attempts = {attempts}
keep_results_s = {keep_s}

[profiles.prove.services.trouble]
"""


@attrs.define
class Run:
    """One bad day of one server.

    Args:
        day: what goes wrong.
        folder: for settings and journal.
        chance: decides.
    """

    day: Day
    folder: Path
    chance: random.Random
    history: History = attrs.Factory(History)
    ends: Counter[str] = attrs.Factory(Counter)
    breaches: list[str] = attrs.Factory(list)
    starts: int = 0
    _port: int = attrs.Factory(free_port)
    _numbers: Iterator[int] = attrs.Factory(itertools.count)

    async def run(self) -> None:
        """Start, have jobs come while things go wrong, and wait for the end of all."""
        async with receiver(self.history, self.chance) as good, aiohttp.ClientSession() as session:
            with contextlib.ExitStack() as left:
                if self.day.small_disk:
                    left.enter_context(small_disk(self.folder / "disk"))
                hook = good if self.day.hook == "good" else left.enter_context(dead_receiver(self.day.hook))
                await self._live(session, hook)
        self._check()

    async def _live(self, session: aiohttp.ClientSession, hook: str) -> None:
        settings = self._write()
        server = await self._start(settings)
        until = time.monotonic() + LOAD_S
        strikes = self.day.strikes
        struck = asyncio.create_task(strikes(server, self.folder / "disk", self.chance)) if strikes else None
        callers = [asyncio.create_task(self._call(session, hook, until)) for _ in range(CALLERS)]
        deadline = until + END_LIMIT_S
        ended: set[str] = set()
        while time.monotonic() < deadline:
            if server.process.returncode is not None:
                server = await self._start(settings)
            if all(caller.done() for caller in callers):
                for job in self.history.accepted:
                    if job.job_id not in ended and await self._look(session, job) in ENDED:
                        ended.add(job.job_id)
                if len(ended) == len(self.history.accepted) and not self._webhooks_due():
                    break
            await asyncio.sleep(0.05)
        await asyncio.gather(*callers, *([struck] if struck else []))
        await server.kill()

    def _write(self) -> Path:
        settings, disk = self.folder / "services.toml", self.folder / "disk"
        bucket = "bucket" if self.day.bucket else ""
        text = SETTINGS.format(
            port=self._port, bucket=bucket, closed=free_port(), disk=disk, attempts=MAX_ATTEMPTS, keep_s=KEEP_S
        )
        settings.write_text(text, encoding="utf-8")
        return settings

    async def _start(self, settings: Path) -> Server:
        """Start the server, like a supervisor: again if it ends before it serves."""
        while True:
            self.starts += 1
            with (self.folder / "server.log").open("ab") as log, contextlib.suppress(NotStarted):
                return await start(settings, log=log)
            if self.starts > 20:
                raise NotStarted(1)

    async def _call(self, session: aiohttp.ClientSession, hook: str, until: float) -> None:
        """Be one caller."""
        while time.monotonic() < until:
            token = f"t{next(self._numbers)}"
            given: dict[str, Any] = {"token": token, "seconds": self.chance.choice([0, 0, 0.02])}
            if self.chance.random() < TROUBLED:
                given["trouble"] = self.day.trouble
            webhook = self.chance.random() < 0.3
            sent_ns = time.monotonic_ns()
            body = {"input": given, **({"webhook": hook} if webhook else {})}
            status, shown = await self._ask(session, "POST", "/v2/trouble/run", json=body)
            if status == 200:
                wish = Wish(
                    token=token,
                    service="trouble",
                    input=given,
                    webhook=webhook,
                    key=False,
                    keep_s=KEEP_S,
                    ordered=False,
                )
                job = Accepted(wish=wish, job_id=shown["id"], sent_ns=sent_ns, answered_ns=time.monotonic_ns())
                self.history.accepted.append(job)
                await self._look(session, job)
            elif status and status not in DOCUMENTED:
                self.breaches.append(f"run answered {status}: {shown}"[:200])
            await asyncio.sleep(0.01)

    async def _look(self, session: aiohttp.ClientSession, job: Accepted) -> str:
        """See where a job is."""
        sent_ns = time.monotonic_ns()
        status, shown = await self._ask(session, "GET", f"/v2/trouble/status/{job.job_id}")
        if status in (200, 404):
            seen = shown if status == 200 else None
            answered_ns = time.monotonic_ns()
            self.history.sights.append(Sight(job_id=job.job_id, sent_ns=sent_ns, answered_ns=answered_ns, shown=seen))
        elif status not in (0, 503):
            self.breaches.append(f"status answered {status}: {shown}"[:200])
        return str(shown.get("status", ""))

    async def _ask(
        self, session: aiohttp.ClientSession, method: str, path: str, **arguments: Any
    ) -> tuple[int, dict[str, Any]]:
        timeout = aiohttp.ClientTimeout(total=5.0)
        try:
            async with session.request(
                method, f"http://127.0.0.1:{self._port}{path}", timeout=timeout, **arguments
            ) as answer:
                return answer.status, await answer.json()
        except UNREACHABLE:
            await asyncio.sleep(0.05)
            return 0, {}

    def _webhooks_due(self) -> bool:
        return self.day.hook == "good" and bool(Checker(self.history, MAX_ATTEMPTS).missing_webhooks())

    def _check(self) -> None:
        checker = Checker(self.history, MAX_ATTEMPTS)
        self.breaches += checker.promises()
        if self.day.hook == "good":
            self.breaches += checker.missing_webhooks()
        last = {sight.job_id: sight.shown for sight in self.history.sights if sight.shown}
        self.ends.update(shown["status"] for shown in last.values())


@contextlib.contextmanager
def dead_receiver(kind: str) -> Iterator[str]:
    """Give the URL of a receiver that refuses connections, or takes them and says nothing."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        if kind == "silent":
            one.listen(1000)
        yield f"http://127.0.0.1:{one.getsockname()[1]}/hook"


def prove(runs: int, seed: int) -> int:
    """Go through so many bad days; the number of breaches."""
    kinds = {name: day for name, day in DAYS.items() if may_mount() or not day.small_disk}
    for name in DAYS.keys() - kinds:
        print(f"left out: {name} (needs the right to mount a disk)")
    totals = {name: [0, 0, 0, 0] for name in kinds}
    ends: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    breaches = []
    for number, name in zip(range(runs), itertools.cycle(kinds), strict=False):
        with tempfile.TemporaryDirectory(prefix="prove-chaos-") as folder:
            (Path(folder) / "disk").mkdir()
            run = Run(kinds[name], Path(folder), random.Random(seed + number))
            asyncio.run(run.run())
        row = (1, len(run.history.accepted), run.starts - 1, len(run.breaches))
        totals[name] = [sum(pair) for pair in zip(totals[name], row, strict=True)]
        ends[name] += run.ends
        breaches += [f"{name}, run {number}: {breach}" for breach in run.breaches]
    for name, (count, jobs, restarts, broken) in totals.items():
        shown = ", ".join(f"{status} {number}" for status, number in sorted(ends[name].items()))
        print(f"{name:19} {count:3} runs {jobs:6} jobs {restarts:3} restarts {broken:3} breaches   {shown}")
    print(*breaches[:20], sep="\n", end="\n" if breaches else "")
    return len(breaches)


def main(arguments: Sequence[str]) -> int:
    """Run the proof; 1 if something did not hold."""
    parser = argparse.ArgumentParser(prog="scripts/prove chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200, help="how many bad days")
    parser.add_argument("--seed", type=int, default=0, help="of everything that chance decides")
    given = parser.parse_args(arguments)
    breaches = prove(given.runs, given.seed)
    print("held" if not breaches else f"{breaches} breaches")
    return int(breaches > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
