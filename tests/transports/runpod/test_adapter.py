"""The adapter on this loop, called as RunPod's worker loop calls it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiservices.cli import Exit, main
from aiservices.errors import ServiceError
from aiservices.registry import Registry
from aiservices.settings import Config, ServerConfig, ServiceConfig
from aiservices.transports.runpod import RunPodAdapter, slots
from tests.fakes import Counting, Gated, Upper

RELEASE = threading.Event()
LIMIT_S = 10.0


class Slow(Upper):
    """Is loaded when the test says so."""

    def load(self, *arguments: object) -> None:
        assert RELEASE.wait(LIMIT_S)


class Stepping(Counting):
    """Steps as the test allows."""

    def __init__(self) -> None:
        super().__init__(free_running=False)


def make_config(*handlers: type[Any], **settings: Any) -> Config:
    services = {
        cls.__name__.lower(): ServiceConfig(
            name=cls.__name__.lower(), handler=f"{cls.__module__}:{cls.__name__}", device="cpu", **settings
        )
        for cls in handlers
    }
    return Config(server=ServerConfig(grace_s=0.0), profile="test", services=services)


@asynccontextmanager
async def adapted(*handlers: type[Any], **settings: Any) -> AsyncIterator[RunPodAdapter]:
    adapter = RunPodAdapter(Registry(make_config(*handlers, **settings)), progress_interval_s=0.01)
    try:
        yield adapter
    finally:
        await adapter.close(0.0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110  (what is awaited happens on another thread)
            await asyncio.sleep(0)


async def test_a_model_that_takes_too_long_is_named_with_what_it_waits_for() -> None:
    RELEASE.clear()
    async with adapted(Upper, Slow) as adapter:
        with pytest.raises(ServiceError, match=r"not ready within 1 s: slow: the model is being loaded$"):
            await adapter.open(1.0)  # enough for the other one, on a busy machine too
        RELEASE.set()


async def test_a_service_that_loads_on_first_use_is_not_waited_for() -> None:
    async with adapted(Upper, load="first_use") as adapter:
        await adapter.open(LIMIT_S)
        assert await adapter.handle({"id": "a", "input": {"text": "t"}}, print) == {"text": "T"}


async def test_progress_is_told_once_for_each_change() -> None:
    told: list[float] = []
    async with adapted(Stepping) as adapter:
        await adapter.open(LIMIT_S)
        handler = adapter.registry.get("stepping").handler
        assert isinstance(handler, Stepping)
        task = asyncio.create_task(adapter.handle({"id": "a", "input": {"text": "t", "count": 4}}, told.append))
        for fraction in (0.25, 0.5):
            handler.turn.release()
            await until(lambda fraction=fraction: told[-1:] == [fraction])  # type: ignore[misc]
        handler.turn.release(100)
        assert await task == {"text": "t 4"}
        assert told[:2] == [0.25, 0.5]


async def test_chunks_come_before_the_output() -> None:
    async with adapted(Counting) as adapter:
        await adapter.open(LIMIT_S)
        event = {"id": "a", "input": {"text": "t", "count": 3}}
        assert [item async for item in adapter.stream(event, print)] == [1, 2, 3, {"text": "t 3"}]
        assert [item async for item in adapter.stream({"id": "b", "input": 3}, print)] == [
            {"error": "$.input: expected object, got int"}
        ]


async def test_chunks_of_a_job_that_ended_while_one_was_handed_on_are_not_lost() -> None:
    async with adapted(Stepping) as adapter:
        await adapter.open(LIMIT_S)
        handler = adapter.registry.get("stepping").handler
        assert isinstance(handler, Stepping)
        handler.turn.release()
        items = adapter.stream({"id": "a", "input": {"text": "t", "count": 4}}, print)
        first = await anext(items)
        handler.turn.release(100)
        await until(lambda: adapter.registry.get("stepping").health()["jobs"]["completed"] == 2)  # the warm-up, too
        assert [first, *[item async for item in items]] == [1, 2, 3, 4, {"text": "t 4"}]


async def test_a_stop_ends_the_job_that_it_names_and_no_other() -> None:
    async with adapted(Gated) as adapter:
        await adapter.open(LIMIT_S)
        gated = adapter.registry.get("gated").handler
        assert isinstance(gated, Gated)
        tasks = [asyncio.create_task(adapter.handle({"id": n, "input": {"text": n}}, print)) for n in ("a", "b")]
        await until(gated.entered.is_set)
        await adapter.cancel("a")
        await adapter.cancel("never was")
        assert await tasks[0] == {"error": "the job ended as CANCELLED"}
        gated.gate.set()
        assert await tasks[1] == {"text": "B"}


def test_slots_are_well_above_one_batch_of_each_service() -> None:
    assert slots(make_config(Upper, Counting, max_batch_size=8)) == 64


def test_outside_of_runpod_the_command_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runpod"]) == Exit.USAGE
    assert "RUNPOD_WEBHOOK_GET_JOB is not set" in capsys.readouterr().err


def test_the_package_runpod_is_imported_by_its_command_alone() -> None:
    code = "import sys, aiservices.cli.runpod, aiservices.cli.serve; print('runpod' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert found.stdout == "False\n"
