"""How fast listings are generated: ``scripts/bench generation``.

The same mixed listings, all at once or at random arrivals: this package over HTTP with its own engine and with vLLM,
vLLM's own OpenAI server, and without a server the engines themselves (the ideal), transformers' ``generate`` one at a
time and its continuous batching. Rounds alternate; prints medians. vLLM is its build for CPUs, in .venv/vllm. The two
of transformers know no grammar and write as many tokens without one. Nothing fails because of a number.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from statistics import median, quantiles

import aiohttp
import attrs

from tools.benchmarks.generation.offline import SIDES as OFFLINE
from tools.benchmarks.generation.servers import PYTHON, ROOT, VLLM_PYTHON, Caller, Timing, openai_server, ours
from tools.benchmarks.generation.work import DEMO, Work, mixed_work, write_model, write_work

SERVED = ("own", "vllm", "openai")
NAMES = {
    "own": "this package, own engine, HTTP",
    "vllm": "this package, vLLM, HTTP",
    "openai": "vLLM's OpenAI server, HTTP",
    "own-engine": "own engine, no server",
    "vllm-engine": "vLLM behind our contract, no server",
    "vllm-offline": "vLLM's `LLM.chat`, no server",
    "generate": "transformers' `generate`, one at a time",
    "continuous-batching": "transformers' continuous batching",
}


@attrs.frozen
class Round:
    """What one side did once.

    Attributes:
        timings: of each job; empty without a server.
    """

    seconds: float
    jobs: int
    tokens: int
    timings: Sequence[Timing] = ()


async def send(url: str, call: Caller, work: Sequence[Work], per_s: float) -> Round:
    """Send all the work, at once or at random arrivals of so many a second."""
    dice = random.Random(1)
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as client:
        await call(client, work[0])
        began = time.perf_counter()

        async def send_later(one: Work, wait_s: float) -> Timing:
            await asyncio.sleep(wait_s)
            return await call(client, one)

        waits, at = [], 0.0
        for _ in work:
            at += dice.expovariate(per_s) if per_s else 0.0
            waits.append(at)
        timings = await asyncio.gather(*map(send_later, work, waits))
        passed_s = time.perf_counter() - began
    return Round(passed_s, len(work), sum(timing.tokens for timing in timings), timings)


def serve(side: str, model: Path, rows: int, folder: Path) -> AbstractAsyncContextManager[tuple[str, Caller]]:
    """Start one of the servers."""
    if side == "openai":
        return openai_server(model, rows)
    return ours(side, PYTHON if side == "own" else VLLM_PYTHON, model, rows, folder)


async def measure(side: str, model: Path, options: argparse.Namespace, folder: Path) -> Round:
    """Let one side do the work once."""
    work = mixed_work(options.jobs)
    if side in SERVED:
        async with serve(side, model, options.rows, folder) as (url, call):
            return await send(url, call, work, options.per_s)
    write_work(folder / "work.json", work)
    python = VLLM_PYTHON if side.startswith("vllm") else PYTHON
    words = [python, "-m", "tools.benchmarks.generation.offline", side, model, folder / "work.json", options.rows]
    done = await asyncio.to_thread(
        subprocess.run, list(map(str, words)), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr[-2000:]}")
    return Round(**json.loads(done.stdout.splitlines()[-1]))


def report(rounds: dict[str, list[Round]]) -> str:
    """The table, in Markdown."""
    lines = [
        "| | jobs/s | tokens/s | first text p50, p99 ms | between tokens p50, p99 ms | job p50, p99 ms |",
        "|---|---|---|---|---|---|",
    ]
    for side, done in rounds.items():
        timings = [timing for one in done for timing in one.timings]
        first = [1000 * timing.first_s for timing in timings]
        between = [1000 * (timing.end_s - timing.first_s) / max(1, timing.tokens - 1) for timing in timings]
        whole = [1000 * timing.end_s for timing in timings]
        lines.append(
            f"| {NAMES[side]} | {median(one.jobs / one.seconds for one in done):.1f} "
            f"| {median(one.tokens / one.seconds for one in done):.0f} "
            f"| {_cuts(first)} | {_cuts(between)} | {_cuts(whole)} |"
        )
    return "\n".join(lines)


def _cuts(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    cuts = quantiles(values, n=100)
    return f"{cuts[49]:.1f}, {cuts[98]:.1f}"


async def measure_all(options: argparse.Namespace, folder: Path) -> dict[str, list[Round]]:
    """Measure every side in turn, round after round."""
    model = DEMO if options.model == "demo" else write_model(folder / "random", int(options.model))
    rounds: dict[str, list[Round]] = {side: [] for side in options.sides}
    for number in range(options.rounds):
        for side in options.sides:
            done = await measure(side, model, options, folder)
            rounds[side].append(done)
            rate = done.tokens / done.seconds
            print(f"round {number + 1}, {side}: {rate:.0f} tokens/s, {done.tokens} tokens", file=sys.stderr, flush=True)
    return rounds


def main() -> None:
    """Read the command line and measure."""
    sides = [*SERVED, *OFFLINE]
    parser = argparse.ArgumentParser(prog="scripts/bench generation", description=__doc__)
    add = parser.add_argument
    add("--jobs", type=int, default=64, help="default: 64")
    add("--rows", type=int, default=16, help="jobs at a time in the model; default: 16")
    add("--rounds", type=int, default=3, help="default: 3")
    add("--per-s", type=float, default=0.0, help="random arrivals of so many jobs a second; default: all at once")
    add("--model", default="demo", help="demo, or millions of random weights, such as 30; default: demo")
    add("--sides", type=lambda text: text.split(","), default=sides, help=f"of {', '.join(sides)}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(report(asyncio.run(measure_all(options, Path(folder)))))


if __name__ == "__main__":
    main()
