"""The services in ``examples/``, each behind the real registry."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any

import attrs
import pytest

from aiservices.callers import ANYONE
from aiservices.errors import ConfigError, InvalidInput
from aiservices.jobs import Job, JobRequest, Stage
from aiservices.registry import Registry
from aiservices.service import Service
from aiservices.settings import Config
from aiservices.transports.http import create_app
from tests.running import ended, output, until
from tests.transports.http.apps import MakeClient


@pytest.fixture
async def registry(config: Config) -> AsyncIterator[Registry]:
    registry = Registry(config)
    await registry.start()
    yield registry
    await registry.close()


@pytest.fixture
def stories(registry: Registry) -> Service:
    return registry.get("tell-story")


def ask(service: Service, **fields: Any) -> Job:
    return service.submit(JobRequest(input=fields))


def hold_before_step(service: Service, monkeypatch: pytest.MonkeyPatch, number: int) -> Held:
    """Have the model's thread wait before its step of that number, from 0."""
    held, step, steps = Held(), service.handler.step, iter(range(1_000_000))

    def gated() -> Any:
        if next(steps) == number:
            held.reached.set()
            assert held.go.wait(10), "the test never let the model go on"
        return step()

    monkeypatch.setattr(service.handler, "step", gated)
    return held


@attrs.frozen
class Held:
    """A model's thread that waits."""

    reached: threading.Event = attrs.field(factory=threading.Event)
    go: threading.Event = attrs.field(factory=threading.Event)


async def test_words_are_counted(registry: Registry) -> None:
    service = registry.get("count-words")
    jobs = [service.submit(JobRequest(input={"text": text})) for text in ("one", "one two  three\n")]
    assert await ended(service, *jobs) == ["COMPLETED", "COMPLETED"]
    assert [output(job) for job in jobs] == [{"words": 1}, {"words": 3}]
    with pytest.raises(InvalidInput, match=r"\$\.text: expected at least 1 character"):
        service.submit(JobRequest(input={"text": ""}))


async def test_a_seed_tells_the_same_story_alone_or_in_company(stories: Service) -> None:
    first = ask(stories, begin="The fox", words=200, seed=3)
    await ended(stories, first)
    again, other = ask(stories, begin="The fox", words=200, seed=3), ask(stories, begin="The fox", words=200, seed=4)
    await ended(stories, again, other)
    assert output(first) == output(again)
    assert output(first)["words"] == 200
    assert output(first)["story"].startswith("The fox ")
    assert output(first) != output(other)


async def test_the_stream_is_the_story_word_by_word(stories: Service) -> None:
    job = ask(stories, words=30, seed=1)
    await ended(stories, job)
    assert " ".join(job.read_stream()) == output(job)["story"].removesuffix(" …")
    assert job.progress == 1


async def test_a_beginning_that_no_tale_has_goes_on_all_the_same(stories: Service) -> None:
    job = ask(stories, begin="Quantum zebras", words=5, seed=1)
    assert await ended(stories, job) == ["COMPLETED"]
    assert re.fullmatch(r"Quantum zebras [A-Z]\S* \S+ \S+( …)?", output(job)["story"])


async def test_two_stories_are_told_in_one_batch(stories: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    held = hold_before_step(stories, monkeypatch, 0)
    first = ask(stories, words=10)
    assert await asyncio.to_thread(held.reached.wait, 10)
    second = ask(stories, words=10)  # joins the running batch before its second step
    await until(lambda: second.stage is Stage.RUNNING)
    sizes = watch_batches(stories, monkeypatch)
    held.go.set()
    await ended(stories, first, second)
    assert 2 in sizes
    assert len(sizes) < 20  # steps, where one after the other takes 10 each


def watch_batches(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many stories had a word more after each step."""
    sizes: list[int] = []
    step = service.handler.step

    def counted() -> Any:
        sizes.append(len(vars(service.handler)["_stories"]))
        return step()

    monkeypatch.setattr(service.handler, "step", counted)
    return sizes


async def test_a_story_that_is_cancelled_in_the_middle_leaves_the_other_alone(
    stories: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ask(stories, words=500, seed=5)
    await ended(stories, alone)
    held = hold_before_step(stories, monkeypatch, 3)
    stopped, goes_on = ask(stories, words=1000, seed=6), ask(stories, words=500, seed=5)
    assert await asyncio.to_thread(held.reached.wait, 10)
    stories.cancel(stopped.id, ANYONE)
    held.go.set()
    assert await ended(stories, stopped, goes_on) == ["CANCELLED", "COMPLETED"]
    assert len(stopped.read_stream()) <= 3
    assert output(goes_on) == output(alone)
    assert vars(stories.handler)["_stories"] == {}


async def test_more_words_to_begin_with_than_to_tell_are_refused(stories: Service) -> None:
    with pytest.raises(InvalidInput, match=r"\$\.words: expected more words than the story begins with"):
        ask(stories, begin="The fox", words=2)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": ""}, "model has to name a folder with tales in it (*.txt)"),
        ({"model": "scripts"}, "model has to name a folder with tales in it (*.txt)"),
    ],
)
async def test_settings_that_cannot_be_are_the_reason_why_jobs_fail(
    config: Config, settings: Mapping[str, Any], reason: str
) -> None:
    service = attrs.evolve(config.services["tell-story"], **settings)
    registry = Registry(attrs.evolve(config, services={"tell-story": service}))
    await registry.start()
    job = ask(registry.get("tell-story"))
    await job.wait_end(10)
    assert job.error == f"the model could not be loaded: {reason}"
    await registry.close()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ordr": 2}, "options.ordr: no such option; did you mean 'order'?"),
        ({"order": 0}, "options.order: Expected `int` >= 1"),
    ],
)
async def test_options_that_cannot_be_stop_the_start(config: Config, options: dict[str, Any], reason: str) -> None:
    service = attrs.evolve(config.services["tell-story"], options=options)
    with pytest.raises(ConfigError) as caught:
        Registry(attrs.evolve(config, services={"tell-story": service}))
    assert str(caught.value) == f"[services.tell-story] {reason}"


async def test_a_story_is_streamed_and_cancelled_over_http(
    config: Config, aiohttp_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(config)
    held = hold_before_step(registry.get("tell-story"), monkeypatch, 3)
    client = await aiohttp_client(create_app(registry))
    answer = await client.post("/tell-story/api/v1/run", json={"input": {"words": 100, "seed": 2}})
    path = f"/tell-story/api/v1/stream/{(await answer.json())['id']}"
    async with client.get(path, headers={"Accept": "text/event-stream"}) as stream:
        words = [await next_event(stream.content) for _ in range(3)]
        assert [name for name, _ in words] == ["output"] * 3
        await client.post(path.replace("stream", "cancel"))
        held.go.set()
        name, last = await next_event(stream.content)
        assert (name, last["status"]) == ("status", "CANCELLED")


async def next_event(content: asyncio.StreamReader | Any) -> tuple[str, Any]:
    """Read one server-sent event: its name and data."""
    event = (await content.readuntil(b"\n\n")).decode()
    found = re.fullmatch(r"event: (\w+)\ndata: (.*)\n\n", event)
    assert found is not None, event
    return found[1], json.loads(found[2])
