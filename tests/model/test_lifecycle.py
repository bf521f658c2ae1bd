from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import pytest

import aiservices
from aiservices.callers import ANYONE
from aiservices.errors import JobFailed, Unavailable
from aiservices.handler import Task
from aiservices.jobs import JobRequest
from aiservices.model import ServiceState, check_memory
from aiservices.storage import ModelStore, OnProgress, Progress
from tests.fakes import Shelved, TextInput, TextOutput, Unloadable, Upper, make_shared
from tests.running import LIMIT_S, ask, ended, output, running, until


async def test_jobs_sent_while_the_model_loads_wait_and_say_so() -> None:
    release = threading.Event()

    class Slow(Upper):
        def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
            assert release.wait(LIMIT_S)

    async with running(Slow()) as service:
        first, second = ask(service, "a"), ask(service, "b")
        await until(lambda: service.reason == "the model is being loaded")
        assert service.status(second) == {
            "id": second.id,
            "status": "IN_QUEUE",
            "queuePosition": 2,
            "reason": "the model is being loaded",
        }
        release.set()
        assert await ended(service, first, second) == ["COMPLETED", "COMPLETED"]


async def test_a_service_that_loads_on_first_use_stays_cold_until_then() -> None:
    async with running(Upper(), load="first_use") as service:
        await asyncio.sleep(0)
        assert service.state is ServiceState.COLD
        assert await ended(service, ask(service, "a")) == ["COMPLETED"]
        assert service.health()["workers"]["ready"] == 1


async def test_load_work_and_unload_run_on_one_thread() -> None:
    threads: list[int] = []

    class Watched(Upper):
        def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
            threads.append(threading.get_ident())

        def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextOutput | Exception]:
            threads.append(threading.get_ident())
            return super().predict(tasks)

        def unload(self) -> None:
            threads.append(threading.get_ident())

    async with running(Watched()) as service:
        await ended(service, ask(service, "a"))
    assert len(threads) == 3
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_a_model_that_cannot_be_loaded_ends_the_queue_with_the_reason() -> None:
    async with running(Unloadable()) as service:
        job = ask(service, "a")
        assert await ended(service, job) == ["FAILED"]
        assert job.error == "the model could not be loaded: options: no such weights"
        assert service.state is ServiceState.FAILED
        with pytest.raises(Unavailable, match="no such weights"):
            ask(service, "b")


async def test_a_warm_up_loads_the_model_and_tries_again_after_a_failure() -> None:
    class SecondTime(Upper):
        tries = 0

        def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
            self.tries += 1
            if self.tries == 1:
                raise JobFailed("not yet")

    async with running(SecondTime()) as service:
        await until(lambda: service.state is ServiceState.FAILED)
        warmup = service.submit(JobRequest(input={"action": "warmup"}))
        assert await ended(service, warmup) == ["COMPLETED"]
        assert output(warmup) == {"state": "READY"}
        assert await ended(service, ask(service, "a")) == ["COMPLETED"]
        again = service.submit(JobRequest(input={"action": "warmup"}))
        assert await ended(service, again) == ["COMPLETED"]


async def test_an_option_that_names_a_folder_is_brought_here_before_the_model_is_loaded(tmp_path: Path) -> None:
    gate, asked = asyncio.Event(), list[tuple[str, str]]()

    class Store:
        """Stands in for the model store: tells half of a download and waits for the test."""

        async def resolve(self, uri: str, on_progress: OnProgress | None = None, *, option: str = "") -> Path | None:
            asked.append((uri, option))
            if not uri:
                return None
            assert on_progress is not None
            on_progress(Progress(0, 1, 1024, 2048))
            await gate.wait()
            return tmp_path

    shared = attrs.evolve(make_shared(), store=cast(ModelStore, Store()))
    given = {"shelf": "s3://models/shelf/", "other": 5}
    async with running(Shelved(), shared=shared, options=given) as service:
        job = ask(service, "a")
        await until(lambda: len(asked) == 2)
        assert service.status(job)["reason"] == "options.shelf is being fetched: 1.0 KiB of 2.0 KiB"
        gate.set()
        assert await ended(service, job) == ["COMPLETED"]
        assert asked == [("", ""), ("s3://models/shelf/", "shelf")]
        assert isinstance(service.handler, Shelved)
        assert service.handler.options == {"shelf": str(tmp_path), "other": 5}
        assert service.config.options == given


@pytest.mark.parametrize(
    ("given", "shelf"),
    [
        ({"shelf": "tests/handlers"}, "tests/handlers"),
        ({"shelf": "package://aiservices/demo"}, str(Path(aiservices.__file__).parent / "demo")),
        ({"shelf": ""}, ""),
        ({"shelf": None}, None),
        ({"shelf": 7}, 7),
        ({}, None),
    ],
    ids=["relative", "package", "empty", "none", "a number", "absent"],
)
async def test_what_is_a_folder_here_or_no_folder_is_left_as_it_is(given: dict[str, Any], shelf: object) -> None:
    async with running(Shelved(), options=given) as service:
        assert await ended(service, ask(service, "a")) == ["COMPLETED"]
        assert isinstance(service.handler, Shelved)
        assert service.handler.options.get("shelf") == shelf


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("nowhere/at/all", "options.shelf: 'nowhere/at/all': no such folder (/"),
        ("package://aiservices/nowhere", "options.shelf: 'package://aiservices/nowhere': no such folder (/"),
        ("hff://a/b", "options.shelf: 'hff://a/b': unknown scheme 'hff://'; did you mean 'hf://'?"),
    ],
)
async def test_an_option_whose_folder_cannot_be_had_fails_the_service_by_its_name(uri: str, reason: str) -> None:
    async with running(Shelved(), options={"shelf": uri}) as service:
        job = ask(service, "a")
        assert await ended(service, job) == ["FAILED"]
        assert (job.error or "").startswith(f"the model could not be loaded: {reason}")
        assert service.state is ServiceState.FAILED


async def test_memory_that_is_not_there_is_refused_before_loading() -> None:
    async with running(Upper(), memory_gib=1e9) as service:
        await until(lambda: service.state is ServiceState.FAILED)
        assert "it needs 1e+09 GiB on cpu" in (service.reason or "")
    check_memory(0, "cpu")


async def test_retrying_a_failed_warm_up_loads_again() -> None:
    class Later(Upper):
        loads = 0

        def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
            self.loads += 1
            if self.loads == 1:
                raise JobFailed("not yet")

    async with running(Later(), load="first_use") as service:
        job = service.submit(JobRequest(input={"action": "warmup"}))
        assert await ended(service, job) == ["FAILED"]
        service.retry(job.id, ANYONE)
        assert await ended(service, job) == ["COMPLETED"]
        assert service.state is ServiceState.READY
