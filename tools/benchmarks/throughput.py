"""Measure jobs per second over HTTP: ``scripts/bench throughput [PROFILE] [--concurrency 1,8] [--seconds 10]``.

Serves the profile in a process of its own, keeps so many ``runsync`` calls under way for each service in turn,
and prints what came of it. Numbers are for comparing settings on one machine; nothing fails because of them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import attrs

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "examples" / "large-striped-red-mug-on-wooden.png"
WARM_UP_S = 300.0

INPUTS: Mapping[str, Mapping[str, Any]] = {
    "echo": {"text": "a line of text"},
    "qwen-describe-image": {"image_url": f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"},
    "mistral-generate-description": {"image_description": "A large striped red mug on a wooden table."},
    "chatterbox-text-to-speech": {"text": "Good morning. The red mug is back in stock."},
}
"""One input for each service that there may be."""


@attrs.frozen
class Result:
    """What one service did at one concurrency."""

    service: str
    concurrency: int
    seconds: float
    took_s: Sequence[float]
    failed: int
    batch: float

    def line(self) -> str:
        """One row of the table."""
        jobs = len(self.took_s)
        rate = jobs / self.seconds
        middle = median(self.took_s) if jobs else float("nan")
        late = quantiles(self.took_s, n=20)[-1] if jobs > 1 else middle
        return (
            f"{self.service:30} {self.concurrency:11} {jobs:6} {rate:8.1f} {middle * 1000:9.0f} {late * 1000:9.0f}"
            f" {self.batch:6.1f} {self.failed:7}"
        )


HEADING = (
    f"{'service':30} {'concurrency':>11} {'jobs':>6} {'jobs/s':>8} {'median ms':>9} {'95 % ms':>9}"
    f" {'batch':>6} {'failed':>7}"
)


@asynccontextmanager
async def served(profile: str) -> AsyncIterator[str]:
    """Serve a profile; give its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiservices", "serve", "--profile", profile, "--port", "0"),
        cwd=ROOT,
        env={**os.environ, "AISERVICES_LOG_LEVEL": "error", "AISERVICES_JOURNAL_PATH": "off"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        greeting = (await process.stdout.readline()) + (await process.stdout.readline())
        found = re.search(rb"http://[^/\s]+", greeting)
        assert found is not None, "the server did not start"
        yield found[0].decode()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def measure(client: aiohttp.ClientSession, service: str, concurrency: int, seconds: float) -> Result:
    """Keep so many calls under way for so long."""
    took_s: list[float] = []
    failed = 0
    rows, batches = await _batches(client, service)
    began = time.perf_counter()

    async def caller() -> None:
        nonlocal failed
        while (sent := time.perf_counter()) - began < seconds:
            shown = await _run(client, service, INPUTS[service])
            if shown["status"] == "COMPLETED":
                took_s.append(time.perf_counter() - sent)
            else:
                failed += 1

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    passed = time.perf_counter() - began
    rows_after, batches_after = await _batches(client, service)
    batch = (rows_after - rows) / max(1, batches_after - batches)
    return Result(service, concurrency, passed, took_s, failed, batch)


async def _run(client: aiohttp.ClientSession, service: str, given: Mapping[str, Any]) -> dict[str, Any]:
    async with client.post(f"/{service}/runsync", json={"input": given}) as answer:
        shown: dict[str, Any] = await answer.json()
        return shown


async def _batches(client: aiohttp.ClientSession, service: str) -> tuple[float, float]:
    """Rows and batches so far; for a service that works in steps, rows and steps that ended a row."""
    async with client.get("/metrics") as answer:
        text = await answer.text()
    found = [re.search(rf'batch_size_{name}{{service="{service}"}} (\S+)', text) for name in ("sum", "count")]
    rows, batches = (float(one[1]) if one else 0.0 for one in found)
    return rows, batches


async def main(options: argparse.Namespace) -> None:
    """Measure every service of the profile and print the table."""
    connector = aiohttp.TCPConnector(limit=0)
    async with served(options.profile) as url, aiohttp.ClientSession(url, connector=connector) as client:
        async with client.get("/readyz") as answer:
            services = list((await answer.json())["services"])
        async with asyncio.timeout(WARM_UP_S):
            for service in services:
                await _run(client, service, {"action": "warmup"})
        print(HEADING)
        for service in services:
            for concurrency in options.concurrency:
                print((await measure(client, service, concurrency, options.seconds)).line(), flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure jobs per second over HTTP.")
    parser.add_argument("profile", nargs="?", default="echo")
    parser.add_argument("--concurrency", default="1,8,32", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--seconds", default=10.0, type=float)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(parse()))
