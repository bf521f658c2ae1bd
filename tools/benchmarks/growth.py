"""Whether a job costs more, or leaves more behind, the longer the process lives: ``scripts/bench growth``.

Runs jobs of the profile ``echo`` through the real core in this process, 32 callers at a time, and prints for each tenth
of them the CPU time and the wall time of one job, and the memory that the process holds.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from aiservices import loops
from aiservices.config import load_config
from aiservices.jobs import JobRequest
from aiservices.logs import configure_logging
from aiservices.registry import Registry
from aiservices.service import Service

ROOT = Path(__file__).resolve().parents[2]
CALLERS = 32
TENTHS = 10
WAIT_S = 60.0


def main() -> None:
    """Read the command line, run, print a table."""
    parser = argparse.ArgumentParser(prog="scripts/bench growth", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000, help="how many in all; default: 100 000")
    options = parser.parse_args()
    configure_logging("error", "json")
    loops.run(_measure(options.jobs))


async def _measure(jobs: int) -> None:
    registry = Registry(load_config(ROOT / "services.toml", {}, "echo"))
    await registry.start()
    rounds = max(1, jobs // TENTHS // CALLERS)
    print("| tenth | CPU µs a job | wall µs a job | resident MiB |\n|---|---|---|---|")
    for tenth in range(1, TENTHS + 1):
        cpu_s, began = time.process_time(), time.perf_counter()
        await asyncio.gather(*(_call(registry.get("echo"), rounds) for _ in range(CALLERS)))
        per_job = 1e6 / (rounds * CALLERS)
        cpu_us, wall_us = (time.process_time() - cpu_s) * per_job, (time.perf_counter() - began) * per_job
        print(f"| {tenth} | {cpu_us:.1f} | {wall_us:.1f} | {_resident_mib():.1f} |", flush=True)
    await registry.close()


async def _call(service: Service, rounds: int) -> None:
    for number in range(rounds):
        job = service.submit(JobRequest(input={"text": f"a line of text {number}"}, input_bytes=40))
        await job.wait_end(WAIT_S)
        assert job.output is not None, job.error


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    main()
