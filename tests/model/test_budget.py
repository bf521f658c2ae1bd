"""Models share a device's memory: idle ones give way, the one used longest ago first, and never one in use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from aiservices.errors import ConfigError, InvalidInput
from aiservices.model import MemoryBudget, ServiceState, check_budget
from aiservices.service import Service
from aiservices.settings import Config, ServerConfig, ServiceConfig
from tests.fakes import Gated, make_shared
from tests.running import ask, ended, until


class Open(Gated):
    """Answers at once, unless the test closes the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.set()


class NeverLoads(Open):
    """Takes its share and fails."""

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        raise InvalidInput("options", "no such weights")


@asynccontextmanager
async def together(gib: float, *handlers: Gated) -> AsyncIterator[list[Service]]:
    """Services of 4 GiB each that load on first use, within one bound."""
    shared = attrs.evolve(make_shared(), budget=MemoryBudget({"cpu": gib}))
    services = [
        Service(
            ServiceConfig(name=f"fake-{number}", handler="x:Y", device="cpu", load="first_use", memory_gib=4),
            each,
            shared,
        )
        for number, each in enumerate(handlers)
    ]
    try:
        yield services
    finally:
        for handler in handlers:
            handler.gate.set()
        await asyncio.gather(*(service.close() for service in services))


@pytest.fixture(autouse=True)
def enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr("aiservices.model.lifecycle.check_memory", lambda gib, device: None)


async def use(service: Service) -> None:
    assert await ended(service, ask(service, "a")) == ["COMPLETED"]


async def test_the_model_used_longest_ago_gives_way() -> None:
    async with together(8, Open(), Open(), Open()) as (first, second, third):
        await use(first)
        await use(second)
        await use(first)
        await use(third)
        assert [each.state for each in (first, second, third)] == ["READY", "COLD", "READY"]
        assert second.takes_jobs
        await use(second)
        assert [each.state for each in (first, second, third)] == ["COLD", "READY", "READY"]


async def test_a_model_in_use_never_gives_way_and_who_waits_says_so() -> None:
    busy = Open()
    async with together(4, busy, Open()) as (first, second):
        busy.gate.clear()
        running = ask(first, "a")
        await until(busy.entered.is_set)
        waiting = ask(second, "b")
        reason = "waiting for memory: 4 GiB of cpu's 4 GiB, which other models use"
        await until(lambda: second.status(waiting).get("reason") == reason)
        for _ in range(20):
            await asyncio.sleep(0)
        assert first.state is ServiceState.READY
        busy.gate.set()
        assert await ended(first, running) == ["COMPLETED"]
        assert await ended(second, waiting) == ["COMPLETED"]
        assert [first.state] == [ServiceState.COLD]


async def test_two_that_wait_are_served_in_their_order_and_all_jobs_end() -> None:
    busy = Open()
    async with together(4, busy, Open(), Open()) as services:
        busy.gate.clear()
        jobs = [ask(services[0], "a")]
        await until(busy.entered.is_set)
        ends: list[int] = []
        for number in (2, 1):
            jobs.append(ask(services[number], "b"))
            await until(lambda number=number: "waiting for memory" in (services[number].reason or ""))  # type: ignore[misc]
        busy.gate.set()
        await asyncio.gather(
            *(note_end(ends, number, job.wait_end) for number, job in zip((0, 2, 1), jobs, strict=True))
        )
        assert ends == [0, 2, 1]
        assert [job.status.value for job in jobs] == ["COMPLETED"] * 3


async def note_end(ends: list[int], number: int, wait: Callable[[float], Any]) -> None:
    await wait(10)
    ends.append(number)


async def test_two_that_take_turns_never_wait_for_each_other() -> None:
    async with together(4, Open(), Open()) as services:
        jobs = [(each, ask(each, "a")) for _ in range(10) for each in services]
        for service, job in jobs:
            assert await ended(service, job) == ["COMPLETED"]
        for _ in range(5):
            for each in services:
                await use(each)


async def test_a_load_that_fails_and_a_wait_that_is_broken_off_leave_nothing_taken() -> None:
    busy = Open()
    async with together(4, NeverLoads(), busy, Open()) as (failing, working, waiting):
        assert await ended(failing, ask(failing, "a")) == ["FAILED"]
        await use(working)
        busy.gate.clear()
        busy.entered.clear()
        job = ask(working, "b")
        await until(busy.entered.is_set)
        left = ask(waiting, "c")
        await until(lambda: "waiting for memory" in (waiting.reason or ""))
        await waiting.close()
        assert left.status.value == "FAILED"
        busy.gate.set()
        assert await ended(working, job) == ["COMPLETED"]
        assert working.state is ServiceState.READY


async def test_what_was_measured_counts_where_it_is_more() -> None:
    budget = MemoryBudget({"cuda:0": 10})
    share = budget.share(4, idle_since=lambda: None, look=lambda: None)
    await share.take("cuda", lambda reason: None)
    assert share.device == "cuda:0"
    share.measured(3)
    assert share.gib == 4
    share.measured(7)
    assert share.gib == 7
    share.measured(30)
    assert share.gib == 10


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"cuda:0": 3.0}, "[services.fake] memory_gib: 4 GiB on cuda are more than its bound of 3 GiB"),
        ({"gpu": 3.0}, "[server] device_memory_gib: expected 'cpu' or 'cuda:N', got 'gpu'"),
    ],
)
def test_bounds_that_cannot_be_kept_are_refused_at_the_start(bounds: dict[str, float], message: str) -> None:
    service = ServiceConfig(name="fake", handler="x:Y", device="cuda", memory_gib=4)
    with pytest.raises(ConfigError) as refusal:
        check_budget(Config(server=ServerConfig(device_memory_gib=bounds), services={"fake": service}))
    assert str(refusal.value).startswith(message)
    check_budget(Config(server=ServerConfig(device_memory_gib={"cuda:0": 0, "cpu": 1}), services={"fake": service}))


async def test_where_the_device_is_found_out_later_the_load_says_that_it_is_too_small() -> None:
    async with together(3, Open()) as (service,):
        job = ask(service, "a")
        assert await ended(service, job) == ["FAILED"]
        assert job.error == "the model could not be loaded: it needs 4 GiB of cpu's 3 GiB (device_memory_gib)"


async def test_without_a_bound_all_stay() -> None:
    async with together(0, Open(), Open()) as services:
        for each in services:
            await use(each)
        assert [each.state for each in services] == ["READY"] * 2
