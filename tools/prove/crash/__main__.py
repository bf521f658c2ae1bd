"""Kill the server at random moments and at named points of its journal, and check what callers saw.

With ``--fault NAME`` the server has a deliberate fault, which has to be found; ``--faults`` tries all of them in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import attrs

from tools.benchmarks.overhead.servers import free_port
from tools.prove.crash.callers import KEEP_S, Callers, receiver
from tools.prove.crash.faults import FAULTS
from tools.prove.crash.history import ENDED, Checker, History
from tools.prove.crash.leftovers import leftovers
from tools.prove.crash.victim import POINTS
from tools.serving import NotStarted, Server, start

CALLERS = 5
MAX_ATTEMPTS = 3
POISON_EVERY_KILLS = 15
"""About how many kills are between two jobs that kill the server themselves, each ``MAX_ATTEMPTS`` times or more."""

LONGEST_ROUND_S = 1.0
JOBS_PER_S = 150
"""About; tells how often there has to be a job that kills, for POISON_EVERY_KILLS."""

END_LIMIT_S = 60.0
"""For one more job to end, or one more webhook to arrive, once nobody kills the server any more."""

LOOKS = 500
"""At jobs that have not ended, the oldest first, before the server is asked about those again."""

SETTINGS = """
[server]
port = {port}
profile = "prove"
log_level = "warning"
log_format = "json"

[fetch]
allow_hosts = ["{hook}"]

[webhook]
attempts = 20
retry_wait_s = 0.1

[journal]
path = "{folder}/jobs.db"
"""
SERVICE = """
[services.{name}]
handler = "tools.prove.crash.work:Work"
device = "cpu"
max_attempts = {attempts}
max_batch_size = {batch}
prefetch = {batch}
queue_size = 100000
keep_results = 1000000
keep_results_bytes = 10000000000
keep_results_s = {keep_s}
options = {{ log = "{folder}/runs.log" }}

[profiles.prove.services.{name}]
"""


@attrs.define
class Kills:
    """How often the server was killed, and how."""

    at_random: int = 0
    at_points: dict[str, int] = attrs.Factory(dict)
    by_jobs: int = 0
    asked_to_stop: int = 0

    @property
    def count(self) -> int:
        """All of them, without the times when it was asked to stop."""
        return self.at_random + sum(self.at_points.values()) + self.by_jobs


class Proof:
    """One server's lives.

    Args:
        folder: for its journal and logs.
        chance: decides when it dies.
        fault: name of a deliberate fault; empty: none.
    """

    def __init__(self, folder: Path, chance: random.Random, fault: str = "") -> None:
        self._folder, self._chance, self._fault = folder, chance, fault
        self.history, self.kills = History(), Kills()
        self.breaches: list[str] = []

    async def run(self, kills: int) -> None:
        """Kill it that often, let it end its work, stop it, and look at all that was seen."""
        settings = self._folder / "services.toml"
        port, crashes = free_port(), 1 / (POISON_EVERY_KILLS * LONGEST_ROUND_S * JOBS_PER_S)
        async with receiver(self.history, self._chance) as hook:
            self._write(settings, port, hook)
            callers = Callers(f"http://127.0.0.1:{port}", hook, self.history, self._chance, crashes)
            tasks = [asyncio.create_task(callers.submit()) for _ in range(CALLERS)]
            tasks.append(asyncio.create_task(callers.look_back()))
            try:
                while self.kills.count < kills:
                    await self._live(settings)
                await self._stop(settings, await self._settle(settings, callers, tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await callers.close()
        self._check()
        self.breaches += leftovers(self._folder)

    def _write(self, settings: Path, port: int, hook: str) -> None:
        host = hook.removeprefix("http://").partition("/")[0]
        text = SETTINGS.format(port=port, hook=host, folder=self._folder)
        for name, keep_s in KEEP_S.items():
            batch = 1 if name == "line" else 4
            text += SERVICE.format(name=name, attempts=MAX_ATTEMPTS, batch=batch, keep_s=keep_s, folder=self._folder)
        settings.write_text(text, encoding="utf-8")

    async def _live(self, settings: Path) -> None:
        """One life of the server: it dies at a random moment, by a job, at a point, or is asked to stop."""
        chance = self._chance
        point = chance.choice(POINTS) if chance.random() < (0.9 if self._fault else 0.5) else ""
        environ = {"PROVE_KILL": f"{point}:{int(chance.paretovariate(0.7))}"} if point else {}
        ends = asyncio.create_task(asyncio.sleep(chance.uniform(0.3, LONGEST_ROUND_S)))
        try:
            server = await self._start(settings, environ, ends if chance.random() < 0.2 else None)
        except NotStarted as error:
            self._count(error.status, point)
            return
        if server is None:
            self.kills.at_random += 1
            return
        if not ends.done():
            ends.cancel()
        life = asyncio.create_task(server.process.wait())
        await asyncio.wait([life], timeout=chance.uniform(0.0, LONGEST_ROUND_S))
        if not life.done() and chance.random() < 0.05:
            self.kills.asked_to_stop += 1
            self._count(await server.stop(), "stop")
        elif life.done():
            self._count(life.result(), point)
        else:
            await server.kill()
            self.kills.at_random += 1

    async def _start(self, settings: Path, environ: dict[str, str], ends: asyncio.Task[None] | None) -> Server | None:
        """Start it; None if it was killed before it took jobs, because ``ends`` was done."""
        starting = asyncio.create_task(self._begin(settings, environ))
        if ends is not None:
            await asyncio.wait([starting, ends], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                with suppress(asyncio.CancelledError):
                    await starting
                return None
        return await starting

    async def _begin(self, settings: Path, environ: dict[str, str]) -> Server:
        with (self._folder / "server.log").open("ab") as log:
            fault = {"PROVE_FAULT": self._fault} if self._fault else {}
            command = ("-m", "tools.prove.crash.victim", "serve")
            return await start(settings, command=command, environ={**environ, **fault}, log=log)

    def _count(self, status: int, point: str) -> None:
        if status == -signal.SIGKILL and point and point != "stop":
            self.kills.at_points[point] = self.kills.at_points.get(point, 0) + 1
        elif status == -signal.SIGKILL:
            self.kills.by_jobs += 1
        elif not (status == 0 and point == "stop"):
            self.breaches.append(f"the server ended with status {status}")

    async def _settle(self, settings: Path, callers: Callers, tasks: Sequence[asyncio.Task[None]]) -> Server:
        """Let the callers leave, everything end and every webhook go out; return the running server."""
        callers.leaving = True
        await asyncio.gather(*tasks)
        waiting = dict.fromkeys(job.job_id for job in self.history.accepted)
        server = await self._begin_alive(settings)
        left, deadline = 0, 0.0
        while waiting or (missing := Checker(self.history, MAX_ATTEMPTS).missing_webhooks()):
            count = len(waiting) or -len(missing)  # first jobs, then webhooks
            if count != left:
                left, deadline = count, time.monotonic() + END_LIMIT_S
            elif time.monotonic() > deadline:
                break
            if server.process.returncode is not None:  # by one of its jobs
                self._count(server.process.returncode, "")
                server = await self._begin_alive(settings)
            for job_id in [*waiting][:LOOKS]:
                if await self._is_settled(callers, job_id):
                    del waiting[job_id]
            await asyncio.sleep(0.2)
        return server

    async def _stop(self, settings: Path, server: Server) -> None:
        """End the last life well; a job of which no caller knows, since its answer was lost, may still kill it."""
        while (status := await server.stop()) != 0:
            self._count(status, "")
            if status != -signal.SIGKILL:
                return
            server = await self._begin_alive(settings)

    async def _is_settled(self, callers: Callers, job_id: str) -> bool:
        """Look at a job; whether it has ended or is not there."""
        before = len(self.history.sights)
        shown = await callers.look(job_id)
        return len(self.history.sights) > before and (shown is None or shown["status"] in ENDED)

    async def _begin_alive(self, settings: Path) -> Server:
        """Start it; a job that kills the server does so before it serves, some times at most."""
        for _ in range(20):
            try:
                return await self._begin(settings, {})
            except NotStarted as error:
                self._count(error.status, "")
        raise NotStarted(0)

    def _check(self) -> None:
        for line in (self._folder / "runs.log").read_text(encoding="ascii").splitlines():
            token, began_ns = line.split()
            self.history.runs[token].append(int(began_ns))
        self.breaches += Checker(self.history, MAX_ATTEMPTS).breaches()


def prove(kills: int, seed: int, fault: str = "") -> Proof:
    """Run one server's lives in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="prove-crash-") as folder:
        proof = Proof(Path(folder), random.Random(seed), fault)
        asyncio.run(proof.run(kills))
        return proof


def report(proof: Proof) -> None:
    """Print what happened and what did not hold."""
    history, kills = proof.history, proof.kills
    points, runs = sum(kills.at_points.values()), sum(map(len, history.runs.values()))
    named = f"{points} at {len(kills.at_points)} points"
    print(f"kills      {kills.count}: {kills.at_random} at random, {named}, {kills.by_jobs} by jobs")
    print(f"stops      {kills.asked_to_stop} by SIGTERM")
    print(f"jobs       {len({each.job_id for each in history.accepted})} accepted, {runs} runs")
    print(f"sights     {len(history.sights)} of a job, {len(history.asked)} cancellations and retries")
    print(f"webhooks   {len(history.deliveries)} arrived")
    print(*proof.breaches[:20], sep="\n", end="\n" if proof.breaches else "")


def main(arguments: Sequence[str]) -> int:
    """Run the proof; 1 if something did not hold, or a deliberate fault was not found."""
    parser = argparse.ArgumentParser(prog="scripts/prove crash", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=300, help="how often the server is killed")
    parser.add_argument("--seed", type=int, default=0, help="of everything that chance decides")
    parser.add_argument("--fault", choices=sorted(FAULTS), default="", help="a deliberate fault, which has to be found")
    parser.add_argument("--faults", action="store_true", help="all of them, one after another")
    given = parser.parse_args(arguments)
    if not (given.fault or given.faults):
        proof = prove(given.kills, given.seed)
        report(proof)
        print("held" if not proof.breaches else f"{len(proof.breaches)} breaches")
        return int(bool(proof.breaches))
    unfound = []
    for name in [given.fault] if given.fault else FAULTS:
        proof = prove(given.kills, given.seed, name)
        first = proof.breaches[0] if proof.breaches else ""
        print(f"{name:20} {FAULTS[name].about:56} {len(proof.breaches):4} breaches: {first:.90}", flush=True)
        unfound += [] if proof.breaches else [name]
    print("every fault was found" if not unfound else f"not found: {', '.join(unfound)}")
    return int(bool(unfound))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
