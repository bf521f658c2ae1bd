"""The unmodified worker loop of the package ``runpod`` runs our handler in a process of its own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tests.transports.runpod.workers import working

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")

SERVICES: dict[str, dict[str, Any]] = {
    "upper": {"handler": "tests.fakes:Upper", "max_batch_size": 16},
    "counting": {"handler": "tests.fakes:Counting", "max_batch_size": 8},
    "echo": {"handler": "aiservices.handlers.echo:Echo", "max_batch_size": 16},
}


def job(name: str, **given: Any) -> dict[str, Any]:
    return {"id": name, "input": given}


def mixed(count: int) -> list[dict[str, Any]]:
    """Every kind of job in turn."""
    kinds = [
        lambda n: job(f"upper-{n}", service="upper", text=f"t{n}"),
        lambda n: job(f"counting-{n}", service="counting", text="c", count=3),
        lambda n: job(f"echo-{n}", service="echo", text="e"),
        lambda n: job(f"failing-{n}", service="echo", text="as asked", fail=True),
        lambda n: job(f"wrong-{n}", service="upper", text=7),
        lambda n: job(f"nowhere-{n}", service="none", text="t"),
        lambda n: job(f"warmup-{n}", service="upper", action="warmup"),
    ]
    return [kinds[n % len(kinds)](n) for n in range(count)]


def check(job_id: str, answer: dict[str, Any]) -> None:
    kind, _, number = job_id.partition("-")
    output = answer.get("output") or {}
    error = answer.get("error", "")
    match kind:
        case "upper":
            assert output == {"text": f"T{number}"}
        case "counting":
            assert output == {"text": "c 3"}
        case "echo":
            assert output["text"] == "e"
        case "failing":
            assert error == "as asked"
        case "wrong":
            assert error == "$.text: expected str, got int"
        case "nowhere":
            assert error == "no service named 'none'; there are: upper, counting, echo"
        case "warmup":
            assert output == {"state": "READY"}


async def test_two_hundred_mixed_jobs_are_answered_once_each_and_in_batches(tmp_path: Path) -> None:
    async with working(tmp_path, SERVICES) as worker:
        plane = worker.plane
        slow = job("slow", service="echo", text="s", seconds=2.0)
        await plane.add(slow, *mixed(200))
        await plane.until(lambda: len(plane.answers) == 201)
        for job_id in plane.taken:
            check(job_id, plane.answer(job_id))
        assert max(plane.batches) > 1
        sizes = [plane.answer(job_id)["output"]["batch_size"] for job_id in plane.taken if job_id.startswith("echo")]
        assert max(sizes) > 1
        fractions = [report["output"]["progress"] for report in plane.progress["slow"]]
        assert fractions
        assert all(0 < fraction <= 1 for fraction in fractions)
        await plane.until(lambda: bool(plane.pings))
        worker.terminate()
        assert await worker.ended() == 0


async def test_sigterm_in_the_middle_loses_and_repeats_no_job(tmp_path: Path) -> None:
    async with working(tmp_path, SERVICES, "--slots", "20") as worker:
        plane = worker.plane
        await plane.add(*mixed(400))
        await plane.until(lambda: len(plane.answers) >= 30)
        worker.terminate()
        assert await worker.ended() == 0
        assert len(plane.taken) < 400
        assert set(plane.taken) == set(plane.answers)
        for job_id in plane.taken:
            check(job_id, plane.answer(job_id))


async def test_jobs_that_come_after_sigterm_with_the_last_answer_are_done(tmp_path: Path) -> None:
    async with working(tmp_path, SERVICES) as worker:
        plane = worker.plane
        plane.hold_s = 30
        await plane.until(lambda: plane.open_questions == 1)
        worker.terminate()
        await worker.says("runpod.stopping")
        pings = len(plane.pings)
        await plane.until(lambda: len(plane.pings) >= pings + 2)  # the loop has had a second to leave too early
        await plane.add(*mixed(7))
        assert await worker.ended() == 0
        assert len(plane.taken) == 7
        for job_id in plane.taken:
            check(job_id, plane.answer(job_id))


async def test_jobs_that_outlive_the_grace_end_with_the_reason(tmp_path: Path) -> None:
    services = {"echo": {"handler": "aiservices.handlers.echo:Echo"}}
    async with working(tmp_path, services, grace_s=0.1) as worker:
        plane = worker.plane
        await plane.add(job("long", text="x", seconds=60))
        await plane.until(lambda: bool(plane.progress["long"]))
        worker.terminate()
        assert await worker.ended() == 0
        assert plane.answer("long")["error"] == "the server shut down before the job ended"


@pytest.fixture
def pipes(tmp_path: Path) -> dict[str, str]:
    names = {name: str(tmp_path / name) for name in ("turns", "rows")}
    for name in names.values():
        os.mkfifo(name)
    return names


@pytest.mark.parametrize("mode", [[], ["--stream"]], ids=["", "stream"])
async def test_a_stopped_generation_stops_within_two_steps_and_its_companion_goes_on(
    tmp_path: Path, pipes: dict[str, str], mode: list[str]
) -> None:
    service = {"handler": "tests.transports.runpod.handlers:Stepwise", "max_batch_size": 4, "options": pipes}
    async with working(tmp_path, {"stepwise": service}, *mode) as worker:
        plane = worker.plane
        turns, rows = os.open(pipes["turns"], os.O_RDWR), os.open(pipes["rows"], os.O_RDWR)
        with os.fdopen(rows) as reports, os.fdopen(turns, "wb", buffering=0) as gate:
            await plane.add(job("victim", text="v", count=1000), job("companion", text="c", count=50))

            async def report() -> str:
                return (await asyncio.to_thread(reports.readline)).strip()

            while await report() != "2":
                gate.write(b".")
            await plane.stop("victim")
            # The ping names what the worker has on its list.
            await plane.until(lambda: plane.pings[-1:] == ["companion"])
            seen = []
            for _ in range(2):
                gate.write(b".")
                seen.append(await report())
            assert "evicted" in seen
            gate.write(b"." * 100)
            await plane.until(lambda: bool(plane.answers["companion"]))
            output = plane.answer("companion")["output"]
            assert (output[-1] if mode else output) == {"text": "c 50"}
            assert plane.answers["victim"] == []


async def test_streaming_hands_chunks_on_as_they_come_and_the_output_last(tmp_path: Path) -> None:
    services = {"counting": SERVICES["counting"], "upper": SERVICES["upper"]}
    async with working(tmp_path, services, "--stream") as worker:
        plane = worker.plane
        await plane.add(
            job("a", service="counting", text="c", count=4),
            job("b", service="upper", text="x"),
            job("c", service="counting", text="bad-row"),
            job("d", service="upper", text=3),
        )
        await plane.until(lambda: len(plane.answers) == 4)
        assert plane.answer("a") == {"output": [1, 2, 3, 4, {"text": "c 4"}]}
        assert plane.chunks["a"] == [1, 2, 3, 4, {"text": "c 4"}]
        assert plane.answer("b") == {"output": [{"text": "X"}]}
        assert plane.answer("c")["error"].startswith("internal error (job ")
        assert plane.answer("d") == {"error": "$.text: expected str, got int"}


async def test_a_broken_device_is_told_and_the_worker_asks_to_be_replaced(tmp_path: Path) -> None:
    services = {"breaking": {"handler": "tests.transports.runpod.handlers:Breaking"}}
    async with working(tmp_path, services) as worker:
        plane = worker.plane
        await plane.add(job("a", text="break"))
        assert await worker.ended() == 3
        answer = plane.answer("a")
        assert answer["error"].startswith("the device failed and cannot be used again in this process")
        assert answer["stopPod"] is True


async def test_a_model_that_cannot_be_loaded_ends_the_worker_with_the_reason(tmp_path: Path) -> None:
    services = {"unloadable": {"handler": "tests.fakes:Unloadable"}}
    async with working(tmp_path, services) as worker:
        assert await worker.ended() == 1
        assert "unloadable: the model could not be loaded: options: no such weights" in worker.printed()
        assert worker.plane.taken == []
