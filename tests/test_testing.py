"""The tools for tests of services of one's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiservices.errors import ConfigError, InvalidInput, JobFailed
from aiservices.handler import Context
from aiservices.handlers.echo import Echo
from aiservices.testing import serving
from tests.fakes import Counting, TextInput, Upper


class Fetching(Upper):
    """Answers with what it finds at a URL."""

    async def preprocess(self, input: TextInput, context: Context) -> TextInput:
        found = await context.fetch(input.text, field="$.text", kind="image")
        return TextInput(text=found.decode())


async def test_a_handler_runs_as_a_service() -> None:
    async with serving(Upper) as service:
        assert await service.run(text="a") == {"text": "A"}
        answers = await asyncio.gather(*(service.run(text=letter) for letter in "abc"))
        assert [answer["text"] for answer in answers] == ["A", "B", "C"]


async def test_what_does_not_fit_is_refused_as_a_caller_would_see_it() -> None:
    async with serving(Upper) as service:
        with pytest.raises(InvalidInput, match=r"\$\.text: expected str, got int"):
            await service.run(text=3)


async def test_files_of_the_test_need_no_network_and_others_meet_the_guard() -> None:
    async with serving(Fetching, files={"https://example.com/a": b"red"}) as service:
        assert await service.run(text="https://example.com/a") == {"text": "RED"}
        with pytest.raises(JobFailed, match=r"^FAILED: \$\.text: .*private"):
            await service.run(text="http://127.0.0.1/b")


async def test_a_stream_comes_whole() -> None:
    async with serving(Counting) as service:
        assert len(await service.stream(text="a", count=3)) == 3


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"max_batch_size": 0}, "max_batch_size"), ({"batch_size": 2}, "batch_size"), ({"options": {"a": 1}}, "no such")],
)
async def test_settings_that_cannot_be_are_named(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        async with serving(Echo, **settings):
            raise AssertionError("it must not start")
