"""A model that nobody uses is unloaded, and the next job loads it again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from aiservices.callers import ANYONE
from aiservices.errors import InvalidInput, Unavailable
from aiservices.handler import Task
from aiservices.jobs import JobRequest
from aiservices.model import ServiceState, lifecycle
from tests.fakes import Gated, TextInput, TextOutput, Upper
from tests.running import LIMIT_S, ask, ended, running, until

SOON_S = 0.01


class Watched(Upper):
    """Notes when it is loaded and unloaded, and may be held up while it unloads."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.unloading = threading.Event()
        self.loads_fail = False

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        if self.loads_fail:
            raise InvalidInput("options", "no such weights")
        self.events.append("load")
        self.threads.add(threading.get_ident())

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextOutput | Exception]:
        self.events.append("predict")
        self.threads.add(threading.get_ident())
        return super().predict(tasks)

    def unload(self) -> None:
        self.unloading.set()
        assert self.gate.wait(LIMIT_S)
        self.events.append("unload")
        self.threads.add(threading.get_ident())


async def test_a_model_that_nobody_uses_is_unloaded_and_the_next_job_loads_it_again() -> None:
    handler = Watched()
    async with running(handler, idle_s=SOON_S) as service:
        for _ in range(2):
            assert await ended(service, ask(service, "a")) == ["COMPLETED"]
            await until(lambda: service.state is ServiceState.COLD)
            assert service.takes_jobs
            assert service.reason is None
    assert handler.events == ["load", "predict", "unload"] * 2
    assert len(handler.threads) == 1


async def test_a_model_without_a_limit_stays() -> None:
    async with running(Watched()) as service:
        assert await ended(service, ask(service, "a")) == ["COMPLETED"]
        await asyncio.sleep(2 * SOON_S)
        assert service.state is ServiceState.READY


async def test_a_model_in_use_stays_however_long_a_job_takes() -> None:
    handler = Gated()
    async with running(handler, idle_s=SOON_S) as service:
        job = ask(service, "a")
        await until(handler.entered.is_set)
        await asyncio.sleep(3 * SOON_S)
        assert service.state is ServiceState.READY
        service.cancel(job.id, ANYONE)  # the job has ended, but the model still works on it
        await asyncio.sleep(3 * SOON_S)
        assert service.state is ServiceState.READY
        handler.gate.set()
        await until(lambda: service.state is ServiceState.COLD)


async def test_a_model_stays_while_a_job_waits_for_companions() -> None:
    handler = Watched()
    async with running(handler, idle_s=SOON_S, batch_wait_s=5 * SOON_S) as service:
        assert await ended(service, ask(service, "a")) == ["COMPLETED"]
        assert handler.events == ["load", "predict"]


async def test_jobs_that_come_while_it_unloads_wait_and_none_is_lost() -> None:
    handler = Watched()
    async with running(handler, idle_s=SOON_S) as service:
        assert await ended(service, ask(service, "a")) == ["COMPLETED"]
        handler.gate.clear()
        await until(handler.unloading.is_set)
        assert service.state is ServiceState.UNLOADING
        assert service.takes_jobs
        jobs = [ask(service, "b"), service.submit(JobRequest(input={"action": "warmup"}))]
        assert service.status(jobs[0])["reason"] == "the model is being unloaded: nobody used it for 0.01 s"
        handler.gate.set()
        assert await ended(service, *jobs) == ["COMPLETED"] * 2
    assert handler.events[:4] == ["load", "predict", "unload", "load"]


async def test_closing_while_it_unloads_unloads_once() -> None:
    handler = Watched()
    async with running(handler, idle_s=SOON_S) as service:
        handler.gate.clear()
        await until(handler.unloading.is_set)
        closing = asyncio.create_task(service.close())
        await asyncio.sleep(0)
        handler.gate.set()
        await closing
        assert service.state is ServiceState.STOPPED
    assert handler.events == ["load", "unload"]


async def test_draining_while_it_unloads_ends_the_job_that_came_meanwhile() -> None:
    handler = Watched()
    async with running(handler, idle_s=SOON_S) as service:
        handler.gate.clear()
        await until(handler.unloading.is_set)
        job = ask(service, "a")
        drain = asyncio.create_task(service.drain(LIMIT_S))
        handler.gate.set()
        await drain
        assert job.status.value == "COMPLETED"


async def test_a_load_that_fails_after_a_rest_fails_its_jobs_as_any_other() -> None:
    handler = Watched()
    async with running(handler, idle_s=SOON_S) as service:
        await until(lambda: service.state is ServiceState.COLD and "unload" in handler.events)
        handler.loads_fail = True
        job = ask(service, "a")
        assert await ended(service, job) == ["FAILED"]
        assert "no such weights" in (job.error or "")
        assert not service.takes_jobs
        with pytest.raises(Unavailable, match="no such weights"):
            ask(service, "b")


async def test_a_model_that_does_not_unload_counts_as_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "UNLOAD_TIMEOUT_S", SOON_S)
    handler = Watched()
    handler.gate.clear()
    async with running(handler, idle_s=SOON_S) as service:
        await until(lambda: service.broken)
        assert service.reason == "the model hangs: it did not unload within 0.01 s"
