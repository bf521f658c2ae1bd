"""The finishing of pieces beside the model: nobody else waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from typing import Any

import pytest

from aiservices.handlers.chatterbox import ChatterboxTextToSpeech
from aiservices.handlers.chatterbox.finishing import WAIT_S
from aiservices.handlers.chatterbox.sound import Finish
from tests.handlers.chatterbox.speaking import (
    LONG,
    NEEDS_CHATTERBOX,
    Listener,
    gaps,
    job,
    same,
    samples_of,
    say,
)
from tests.handlers.speech_fakes import Samples

pytestmark = NEEDS_CHATTERBOX


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set, no piece gets through the finishing pool."""
    gate, apply = threading.Event(), Finish.apply

    def held(finish: Finish, samples: Samples, pause_s: float) -> Samples:
        assert gate.wait(50)
        return apply(finish, samples, pause_s)

    monkeypatch.setattr(Finish, "apply", held)
    yield gate
    gate.set()


def test_a_job_is_returned_only_when_its_last_piece_is_finished(
    handler: ChatterboxTextToSpeech, gate: threading.Event
) -> None:
    context = Listener()
    one = job(handler, LONG, context=context)
    handler.admit([one])
    while not context.fractions or context.fractions[-1] < 1:
        assert handler.step() == []
    for _ in range(3):
        assert handler.step() == [], "postprocess would wait for the finishing pool in threads that others need"
    gate.set()
    results = dict[Any, Any]()
    while not results:
        results.update(handler.step())
    gate.clear()
    assert len(gaps(samples_of(handler.postprocess(results[one])), 0.14)) == 3


def test_a_step_waits_for_the_finishing_pool_only_if_nothing_else_is_left_to_do_and_only_a_moment(
    handler: ChatterboxTextToSpeech, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, waits = Listener(), list[float]()

    def noted(futures: Any, timeout: float, return_when: str) -> Any:
        waits.append(timeout)
        gate.set()
        return wait(futures)

    monkeypatch.setattr("aiservices.handlers.chatterbox.finishing.wait", noted)
    one = job(handler, LONG, context=context, stream=True)  # its first piece is finished while the others are spoken
    handler.admit([one])
    results: Sequence[Any] = []
    while not context.fractions or context.fractions[-1] < 1:
        assert not waits
        results = handler.step()
    assert [task for task, _ in results] == [one]
    assert waits == [WAIT_S]
    assert WAIT_S <= 0.05, "a job that joins waits as long"


def test_a_piece_that_cannot_be_finished_fails_its_job_alone(
    handler: ChatterboxTextToSpeech, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, apply = say(handler), Finish.apply
    bad, good = job(handler, LONG, speed=1.5), job(handler)

    def breaking(finish: Finish, samples: Samples, pause_s: float) -> Samples:
        if finish is bad.item.finish:
            raise ValueError("no sound of mine")
        return apply(finish, samples, pause_s)

    monkeypatch.setattr(Finish, "apply", breaking)
    handler.admit([bad, good])
    ended: list[Any] = []
    while len(ended) < 2:
        ended += handler.step()
    results = dict(ended)
    assert isinstance(results[bad], ValueError)
    assert same(handler.postprocess(results[good]), wanted)
    assert handler.step() == []


def test_a_job_that_is_taken_out_while_it_is_finished_leaves_nothing_behind(
    handler: ChatterboxTextToSpeech, gate: threading.Event
) -> None:
    context = Listener()
    one, other = job(handler, LONG, context=context), job(handler)
    handler.admit([one])
    while not context.fractions or context.fractions[-1] < 1:
        handler.step()
    handler.evict([one])
    assert not handler._ready.engine._finishing._pending
    gate.set()
    handler.admit([other])
    results = dict[Any, Any]()
    while not results:
        results.update(handler.step())
    assert list(results) == [other]
