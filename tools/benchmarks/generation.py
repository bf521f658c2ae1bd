"""What serving costs a generation: ``scripts/bench generation``.

Listings by the demo's Mistral, so many rows at a time: the engine alone in a process of its own (the ideal), and the
same requests over HTTP with as many callers, while another one asks for a job's status all the time. Rounds alternate;
prints tokens a second of both, their ratio, and how long a status took. Nothing fails because of a number.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any, ParamSpec, TypeVar

import aiohttp
import attrs

from aiservices.config import load_config
from aiservices.handler import MediaKind, Task, Unit
from tools.benchmarks.throughput import served

T = TypeVar("T")
P = ParamSpec("P")

ROOT = Path(__file__).resolve().parents[2]
SERVICE = "mistral-generate-description"
PROFILE = "bench"
STATUS_EVERY_S = 0.01
SETTINGS = """
[profiles.bench.services.mistral-generate-description]
model = "package://aiservices/demo/mistral"
device = "cpu"
max_batch_size = {rows}
options = {{ dtype = "float32", cpu_threads = 1 }}
"""


class _Alone:
    """The context of a request that nobody waits for."""

    job_id = "alone"
    cancelled = False

    def progress(self, fraction: float) -> None:
        pass

    def emit(self, chunk: Any) -> None:
        pass

    def count(self, unit: Unit, amount: float) -> None:
        pass

    async def fetch(self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None) -> bytes:
        raise NotImplementedError

    async def run_in_child(
        self, function: Callable[..., tuple[dict[str, Any], bytes]], data: bytes, /, *, field: str, **arguments: Any
    ) -> tuple[dict[str, Any], bytearray]:
        raise NotImplementedError

    async def run_in_pool(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)


@attrs.frozen
class Round:
    """What one round saw.

    Attributes:
        offline, served: tokens a second.
        status_s: seconds of each status request.
    """

    offline: float
    served: float
    status_s: list[float]


def inputs() -> Iterator[dict[str, Any]]:
    """Descriptions without end, no two alike in a row."""
    things = [
        "large striped red mug",
        "small dotted black backpack",
        "large plain grey toy car",
        "small plain blue ball",
    ]
    number = 0
    while True:
        yield {"image_description": f"A {things[number % 4]} on a wooden background."}
        number += 1


async def run_offline(settings: Path, seconds: float) -> None:
    """Keep the engine full for so long; print tokens a second. In a process of its own."""
    from aiservices.registry import load_handler
    from aiservices.storage import ModelStore

    config = load_config(settings, {}, PROFILE)
    service = config.services[SERVICE]
    handler: Any = load_handler(service)
    handler.load(await ModelStore(config).resolve(service.model, lambda _: None), "cpu", service.options)
    context, waiting, tokens, rows = _Alone(), inputs(), 0, 0
    items = [await handler.preprocess(handler.Input(**next(waiting)), context) for _ in range(64)]
    began = time.perf_counter()
    while (passed_s := time.perf_counter() - began) < seconds:
        new = [Task(items[(rows + number) % 64], context) for number in range(service.max_batch_size - rows)]
        handler.admit(new)
        rows += len(new)
        for _, result in handler.step():
            rows -= 1
            tokens += result.usage.completion_tokens
    print(tokens / passed_s)


async def measure_served(url: str, rows: int, seconds: float) -> tuple[float, list[float]]:
    """Keep as many callers under way as there are rows; return tokens a second and the times of status requests."""
    waiting, tokens, status_s = inputs(), 0, list[float]()
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as client:
        known = await _call(client, {"action": "warmup"})
        began = time.perf_counter()

        async def caller() -> None:
            nonlocal tokens
            while time.perf_counter() - began < seconds:
                shown = await _call(client, next(waiting))
                tokens += shown["output"]["usage"]["completion_tokens"]

        async def onlooker() -> None:
            while True:
                sent = time.perf_counter()
                async with client.get(f"/v2/{SERVICE}/status/{known['id']}") as answer:
                    await answer.read()
                status_s.append(time.perf_counter() - sent)
                await asyncio.sleep(STATUS_EVERY_S)

        looking = asyncio.create_task(onlooker())
        await asyncio.gather(*(caller() for _ in range(rows)))
        passed_s = time.perf_counter() - began
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
    return tokens / passed_s, status_s


async def _call(client: aiohttp.ClientSession, given: dict[str, Any]) -> dict[str, Any]:
    async with client.post(f"/v2/{SERVICE}/runsync", json={"input": given}) as answer:
        shown: dict[str, Any] = await answer.json()
        assert shown["status"] == "COMPLETED", shown
        return shown


async def measure(settings: Path, options: argparse.Namespace) -> list[Round]:
    """Measure both sides in turn."""
    rounds = []
    os.environ["AISERVICES_CONFIG"] = str(settings)
    for number in range(options.rounds):
        words = [sys.executable, "-m", "tools.benchmarks.generation", "--offline", str(settings)]
        words += ["--seconds", str(options.seconds)]
        done = await asyncio.to_thread(subprocess.run, words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        async with served(PROFILE) as url:
            rate, status_s = await measure_served(url, options.rows, options.seconds)
        rounds.append(Round(float(done.stdout.split()[-1]), rate, status_s))
        print(f"round {number + 1}: {rounds[-1].offline:.0f} and {rate:.0f} tokens/s", file=sys.stderr, flush=True)
    return rounds


def report(rows: int, rounds: list[Round]) -> str:
    """The table, in Markdown."""
    ratios = [each.served / each.offline for each in rounds]
    times_ms = [1000 * one for each in rounds for one in each.status_s]
    cuts = quantiles(times_ms, n=100)
    return (
        "| rows | engine alone, tokens/s | over HTTP, tokens/s | ratio (least to greatest) | status p50, p99 ms |\n"
        "|---|---|---|---|---|\n"
        f"| {rows} | {median(each.offline for each in rounds):.0f} | {median(each.served for each in rounds):.0f} "
        f"| {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | {cuts[49]:.1f}, {cuts[98]:.1f} |"
    )


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="scripts/bench generation", description=__doc__)
    parser.add_argument("--rows", type=int, default=16, help="rows at a time, and callers; default: 16")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement; default: 10")
    parser.add_argument("--offline", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.offline:
        asyncio.run(run_offline(options.offline, options.seconds))
        return
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "services.toml"
        settings.write_text((ROOT / "services.toml").read_text() + SETTINGS.format(rows=options.rows))
        print(report(options.rows, asyncio.run(measure(settings, options))))


if __name__ == "__main__":
    main()
