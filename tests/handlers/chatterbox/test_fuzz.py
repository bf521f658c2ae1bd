"""Any text at all, many at once: each ends in sound or in words that say why not, and none in another's error."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from aiservices.errors import InvalidInput, JobFailed
from aiservices.handler import Task
from aiservices.handlers.chatterbox import ChatterboxTextToSpeech
from aiservices.handlers.speech import Speech
from tests.handlers import tiny_chatterbox
from tests.handlers.chatterbox.speaking import NEEDS_CHATTERBOX, PLAIN, job, loaded
from tests.handlers.chatterbox.texts import any_text

pytestmark = NEEDS_CHATTERBOX

JOBS_AT_ONCE = 24
FEW, MANY = 40, 680
"""Texts a variant: together some 2000."""


@pytest.fixture(scope="module", params=["english", "multilingual", "turbo"])
def any_variant(
    request: pytest.FixtureRequest, patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChatterboxTextToSpeech]:
    tiny_chatterbox.write_checkpoint(folder := tmp_path_factory.mktemp(request.param), request.param)
    handler = loaded(folder, {**PLAIN, "rows": 32, "redraws": 0})
    yield handler
    handler.unload()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_any_text_is_spoken_or_refused_in_words(any_variant: ChatterboxTextToSpeech, count: int) -> None:
    chance, outcomes = random.Random(count), Counter[str]()
    waiting = [any_text(chance) for _ in range(count)]
    running = dict[Task[Any], str]()
    while waiting or running:
        while waiting and len(running) < JOBS_AT_ONCE:
            text = waiting.pop()
            asked = asked_for(any_variant, text, chance)
            if isinstance(asked, str):
                assert asked.startswith("$.text: expected"), (text, asked)
                outcomes["refused"] += 1
            else:
                running[asked] = text
                any_variant.admit([asked])
        for task, result in any_variant.step():
            outcomes[judged(result, running.pop(task))] += 1
    assert outcomes.total() == count
    assert outcomes["spoken"] > count / 2
    assert outcomes["refused"] > count / 40
    engine = any_variant._ready.engine
    assert (len(engine._t3), engine._jobs, engine._parts, engine._unrendered) == (0, [], {}, [])


def asked_for(handler: ChatterboxTextToSpeech, text: str, chance: random.Random) -> Task[Any] | str:
    """Make a job of a text, or say why it is refused."""
    settings: dict[str, Any] = {
        "seed": chance.randrange(1000),
        "language": chance.choice(handler._ready.model.reader.languages),
        "cfg_weight": chance.choice((0.0, 0.5, 1.0)),
        "stream": chance.random() < 0.3,
        "temperature": chance.choice((0.5, 0.8, 1.5)),
    }
    try:
        return job(handler, text, **settings)
    except InvalidInput as error:
        return str(error)


def judged(result: Speech | Exception, text: str) -> str:
    """Name what came of a text; anything but sound or plain words is a failure of the test."""
    if isinstance(result, Exception):
        assert isinstance(result, JobFailed), (text, result)
        assert str(result).startswith("the model made no sound"), (text, result)
        return "silent"
    assert np.concatenate(result.blocks).size > 0, text
    assert all(np.isfinite(block).all() for block in result.blocks), text
    return "spoken"
