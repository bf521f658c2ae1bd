"""Measure jobs per second of the RunPod worker: ``scripts/bench runpod_worker [--jobs 1000] [--slots 64,256]``.

The real worker loop takes echo jobs from a control plane on loopback, the one of the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from tests.transports.runpod.workers import working

SERVICES = {"echo": {"handler": "aiservices.handlers.echo:Echo", "max_batch_size": 64}}


async def measure(jobs: int, slots: int) -> float:
    """Return the jobs per second from the first one taken to the last one answered."""
    with tempfile.TemporaryDirectory() as folder:
        async with working(Path(folder), SERVICES, "--slots", str(slots)) as worker:
            plane = worker.plane
            await plane.add({"id": "first", "input": {"text": "t"}})
            await plane.until(lambda: bool(plane.answers["first"]))
            began = time.perf_counter()
            await plane.add(*({"id": f"job-{n}", "input": {"text": "t"}} for n in range(jobs)))
            await plane.until(lambda: len(plane.answers) > jobs, 600)
            return jobs / (time.perf_counter() - began)


async def main(options: argparse.Namespace) -> None:
    """Measure each number of slots."""
    for slots in options.slots:
        print(f"{slots:5} slots: {await measure(options.jobs, slots):7.1f} jobs/s", flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure jobs per second of the RunPod worker.")
    parser.add_argument("--jobs", default=1000, type=int)
    parser.add_argument("--slots", default="16,64,256", type=lambda text: [int(word) for word in text.split(",")])
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(parse()))
