"""Sound is made beside T3 where there is more than one core: T3 goes on, and jobs may leave meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from aiservices.handlers.chatterbox import ChatterboxTextToSpeech
from tests.handlers.chatterbox.speaking import (
    LONG,
    NEEDS_CHATTERBOX,
    PLAIN,
    Listener,
    job,
    loaded,
    same,
    say,
    step_for_ever,
)

pytestmark = NEEDS_CHATTERBOX


class Gate:
    """Holds S3Gen back, and says when it has come as far."""

    def __init__(self) -> None:
        self.open, self.reached, self.threads = threading.Event(), threading.Event(), set[str]()
        self.open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    from aiservices.handlers.chatterbox.s3gen import S3GenEngine

    gate, render = Gate(), S3GenEngine.render

    def held(engine: S3GenEngine, requests: Sequence[Any], **how: Any) -> Any:
        gate.threads.add(threading.current_thread().name)
        gate.reached.set()
        assert gate.open.wait(50)
        return render(engine, requests, **how)

    monkeypatch.setattr(S3GenEngine, "render", held)
    yield gate
    gate.open.set()


@pytest.fixture(scope="module")
def beside(checkpoint: Path) -> Iterator[ChatterboxTextToSpeech]:
    """A handler whose sound is made on a thread of its own, as with several cores."""
    from aiservices.handlers.chatterbox.rendering import Renderer

    handler = loaded(checkpoint, PLAIN)
    engine = handler._ready.engine
    engine._renderer = Renderer(engine._renderer._s3gen, beside=True)
    yield handler
    handler.unload()


def test_t3_goes_on_while_sound_is_made(beside: ChatterboxTextToSpeech, gate: Gate) -> None:
    context = Listener()
    gate.open.clear()
    streamed = job(beside, LONG, context=context, stream=True)
    beside.admit([streamed])
    while not gate.reached.is_set():
        assert beside.step() == []
    t3 = beside._ready.engine._t3
    for _ in range(3):
        assert beside.step() == []
    assert not context.fractions
    assert len(t3) > 1, "the next pieces wait for the sound of the first"
    assert max(len(row.tokens) for row in t3._rows) >= 2
    gate.open.set()
    results = dict[Any, Any]()
    while not results:
        results.update(beside.step())
    assert gate.threads == {"speech-render_0"}
    assert [chunk["part"] for chunk in context.chunks] == list(range(len(streamed.item.pieces)))


def test_the_sound_is_the_same_on_either_thread(
    beside: ChatterboxTextToSpeech, handler: ChatterboxTextToSpeech
) -> None:
    assert same(say(beside, LONG), say(handler, LONG))


def test_a_job_that_leaves_while_its_sound_is_made_is_forgotten(beside: ChatterboxTextToSpeech, gate: Gate) -> None:
    wanted = say(beside)
    context = Listener()
    gate.open.clear()
    gate.reached.clear()
    gone, other = job(beside, context=context, stream=True), job(beside)
    beside.admit([gone])
    while not gate.reached.is_set():
        beside.step()
    beside.evict([gone])
    gate.open.set()
    beside.admit([other])
    results = dict[Any, Any]()
    while not results:
        results.update(beside.step())
    assert list(results) == [other]
    assert same(beside.postprocess(results[other]), wanted)
    assert (context.fractions, context.chunks) == ([], [])


def test_a_device_that_fails_beside_t3_is_reported_by_a_step(
    beside: ChatterboxTextToSpeech, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from aiservices.handlers.chatterbox.flow import Flow

    wanted = say(beside)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(Flow, "spectrograms", full)
        beside.admit([job(beside)])
        with pytest.raises(torch.OutOfMemoryError):
            step_for_ever(beside)
    beside.reset()
    assert same(say(beside), wanted)


def test_a_batch_that_fails_after_its_jobs_were_forgotten_concerns_nobody(
    beside: ChatterboxTextToSpeech, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from aiservices.handlers.chatterbox.flow import Flow

    wanted = say(beside)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    gate.open.clear()
    gate.reached.clear()
    with monkeypatch.context() as patched:
        patched.setattr(Flow, "spectrograms", full)
        beside.admit([job(beside)])
        while not gate.reached.is_set():
            beside.step()
        batch = beside._ready.engine._renderer.batch
        assert batch is not None
        beside.reset()
        gate.open.set()
        assert isinstance(batch.exception(50), torch.OutOfMemoryError)
    assert same(say(beside), wanted)


def test_closing_waits_for_the_sound_under_way_and_ends_the_threads(checkpoint: Path, gate: Gate) -> None:
    from aiservices.handlers.chatterbox.rendering import Renderer

    handler = loaded(checkpoint, PLAIN)
    engine = handler._ready.engine
    engine._renderer = renderer = Renderer(engine._renderer._s3gen, beside=True)
    gate.open.clear()
    gate.reached.clear()
    handler.admit([job(handler)])
    while not gate.reached.is_set():
        handler.step()
    batch = renderer.batch
    assert batch is not None
    closing = threading.Thread(target=handler.unload)
    closing.start()
    assert not batch.done()
    gate.open.set()
    closing.join(50)
    assert batch.done()
    assert not [thread for thread in threading.enumerate() if thread in renderer._thread._threads]  # type: ignore[union-attr]
