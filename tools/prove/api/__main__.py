"""Hold the server to its OpenAPI document, send it what is no HTTP, keep connections open, and read its log.

The document is tried by schemathesis with all of its checks; the rest goes over plain sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import attrs

from tools.prove.api.document import hold_to_document
from tools.prove.api.raw import BODY, MALFORMED, SLOW, complaint, linger, send
from tools.serving import NotStarted, Server, start

HEAD_TIMEOUT_S = 1.0
BODY_TIMEOUT_S = 2.0
SLACK_S = 3.0
"""What a busy machine may add to a limit of the server's."""

SETTINGS = f"""
[server]
port = 0
profile = "prove"
log_level = "debug"
log_format = "json"
head_timeout_s = {HEAD_TIMEOUT_S}
body_timeout_s = {BODY_TIMEOUT_S}

[journal]
path = "{{folder}}/jobs.db"

[services.words]
handler = "tools.prove.api.words:Words"
device = "cpu"
max_batch_size = 16

[profiles.prove.services]
words = {{{{}}}}
"""


@attrs.define
class Proof:
    """What is asked of one server.

    Args:
        server: that is asked.
        folder: for reports.
    """

    server: Server
    folder: Path
    breaches: list[str] = attrs.Factory(list)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.server.url.removeprefix("http://").partition(":")
        return host, int(port)

    async def document(self, seed: int, examples: int, seconds: int | None) -> None:
        """Try the document."""
        outcome = await hold_to_document(self.server.url, self.folder, seed=seed, examples=examples, seconds=seconds)
        print(f"document   {outcome.cases} requests to {outcome.operations} operations", flush=True)
        self.breaches += outcome.failures

    async def malformed(self) -> None:
        """Send everything that is malformed, each behind a job that goes well."""
        for what, request in MALFORMED.items():
            if found := complaint(await send(*self.address, request)):
                self.breaches.append(f"{what}: {found}")
            await self._job(what)
        print(f"malformed  {len(MALFORMED)} requests", flush=True)

    async def slow(self, connections: int) -> None:
        """Keep connections busy with requests that do not end, while jobs go well."""
        starts = [begin for begin in SLOW.values() for _ in range(connections // len(SLOW))]
        lingering = [asyncio.create_task(linger(*self.address, begin, 0.1)) for begin in starts]
        jobs = 0
        while not all(task.done() for task in lingering):
            await self._job("beside slow requests")
            jobs += 1
            await asyncio.sleep(0.02)
        times = [task.result() for task in lingering]
        allowed_s = max(HEAD_TIMEOUT_S, BODY_TIMEOUT_S) + SLACK_S
        self.breaches += [f"a slow request was kept for {seconds:.1f} s" for seconds in times if seconds > allowed_s]
        print(
            f"slow       {len(times)} connections, kept for {max(times):.1f} s at most; {jobs} jobs beside", flush=True
        )

    async def _job(self, where: str) -> None:
        headers = {"Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{self.server.url}/v2/words/runsync", data=BODY) as answer,
        ):
            shown = await answer.json()
        if shown.get("status") != "COMPLETED":
            self.breaches.append(f"a job {where}: {answer.status} {shown}"[:300])


def forged(log: bytes) -> Iterator[str]:
    """Yield lines of a log that are no JSON object, or that nobody of us wrote."""
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or entry.get("event", "forged") == "forged":
            yield f"a line of the log: {line[:200]!r}"


async def prove(folder: Path, seed: int, examples: int, seconds: int | None, connections: int) -> list[str]:
    """Run it; what did not hold."""
    settings, path = folder / "services.toml", folder / "server.log"
    settings.write_text(SETTINGS.format(folder=folder), encoding="utf-8")
    with path.open("wb") as log:
        server = await start(settings, log=log)
        proof = Proof(server, folder)
        try:
            await proof.malformed()
            await proof.slow(connections)
            await proof.document(seed, examples, seconds)
            if (status := await server.stop()) != 0:
                raise NotStarted(status)
        finally:
            await server.kill()
    lines = path.read_bytes()
    print(f"log        {len(lines.splitlines())} lines")
    return [*proof.breaches, *forged(lines)]


def main(arguments: Sequence[str]) -> int:
    """Run the proof; 1 if something did not hold."""
    parser = argparse.ArgumentParser(prog="scripts/prove api", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the document is tried; 0: once through")
    parser.add_argument("--examples", type=int, default=100, help="most requests of each operation and phase")
    parser.add_argument("--connections", type=int, default=300, help="how many slow ones")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is made up")
    given = parser.parse_args(arguments)
    seconds = int(given.minutes * 60) or None
    with tempfile.TemporaryDirectory(prefix="prove-api-") as folder:
        breaches = asyncio.run(prove(Path(folder), given.seed, given.examples, seconds, given.connections))
    print(*breaches[:20], sep="\n", end="\n" if breaches else "")
    print("held" if not breaches else f"{len(breaches)} breaches")
    return int(bool(breaches))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
