"""An error of one piece, wherever it arises, fails its job alone; one of the device concerns every job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from aiservices.errors import JobFailed
from aiservices.handler import Task
from aiservices.handlers.chatterbox import ChatterboxTextToSpeech
from aiservices.handlers.chatterbox.request import ChatterboxRequest
from tests.handlers import tiny_chatterbox
from tests.handlers.chatterbox.speaking import (
    HIGH,
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

Asked = Task[ChatterboxRequest]
BAD_SEED = 7


@pytest.fixture(scope="module")
def multilingual(
    patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChatterboxTextToSpeech]:
    tiny_chatterbox.write_checkpoint(folder := tmp_path_factory.mktemp("multilingual"), "multilingual")
    handler = loaded(folder, PLAIN)
    yield handler
    handler.unload()


def changed(task: Asked, **fields: Any) -> Asked:
    return Task(attrs.evolve(task.item, **fields), task.context)


def bad_sampling(task: Asked) -> Asked:
    return changed(task, sampling=attrs.evolve(task.item.sampling, temperature="hot"))  # type: ignore[arg-type]


def bad_text(task: Asked) -> Asked:
    pieces = [attrs.evolve(piece, ids=[10**6]) for piece in task.item.pieces]
    return changed(task, pieces=pieces)


def bad_speaker(task: Asked) -> Asked:
    import torch

    return changed(task, voice=attrs.evolve(task.item.voice, speaker=torch.zeros(1, 3)))


def bad_clip(task: Asked) -> Asked:
    voice = task.item.voice
    return changed(task, voice=attrs.evolve(voice, gen=attrs.evolve(voice.gen, frames=voice.gen.frames[:, :79])))


class _Deaf(Listener):
    """A context that raises at the first progress."""

    def progress(self, fraction: float) -> None:
        raise ValueError(f"nobody counts to {fraction}")


def bad_progress(task: Asked) -> Asked:
    return Task(task.item, _Deaf())


def outcomes(handler: ChatterboxTextToSpeech, jobs: list[Asked]) -> list[Any]:
    results = dict[Asked, Any]()
    handler.admit(jobs)
    while len(results) < len(jobs):
        results.update(handler.step())
    engine = handler._ready.engine
    assert (len(engine._t3), engine._jobs, engine._parts, engine._unrendered) == (0, [], {}, [])
    return [results[one] for one in jobs]


@pytest.mark.parametrize(
    ("breaking", "error"),
    [
        (bad_sampling, Exception),
        (bad_text, JobFailed),
        (bad_speaker, RuntimeError),
        (bad_clip, RuntimeError),
        (bad_progress, ValueError),
    ],
)
def test_what_is_bad_in_a_job_fails_it_alone(
    handler: ChatterboxTextToSpeech, breaking: Callable[[Asked], Asked], error: type[Exception]
) -> None:
    wanted, also_wanted = say(handler), say(handler, clip=HIGH, seed=2)
    bad = breaking(job(handler, LONG, seed=BAD_SEED))
    made = outcomes(handler, [job(handler), bad, job(handler, clip=HIGH, seed=2)])
    assert isinstance(made[1], error)
    assert same(handler.postprocess(made[0]), wanted)
    assert same(handler.postprocess(made[2]), also_wanted)


def test_a_generator_that_fails_ends_its_row_alone(handler: ChatterboxTextToSpeech) -> None:
    wanted = say(handler)
    good, bad = job(handler), job(handler, seed=BAD_SEED)
    handler.admit([bad, good])
    handler.step()
    rows = handler._ready.engine._t3._rows
    (broken,) = [row for row in rows if row.request.seed == BAD_SEED]
    broken.generator = object()  # type: ignore[assignment]  # is no generator
    handler._ready.engine._t3._choices.forget()
    results = dict[Asked, Any]()
    while len(results) < 2:
        results.update(handler.step())
    assert isinstance(results[bad], TypeError)
    assert same(handler.postprocess(results[good]), wanted)


def test_a_judge_that_fails_ends_its_row_alone(
    multilingual: ChatterboxTextToSpeech, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiservices.handlers.chatterbox.alignment import RowAlignment

    wanted, follow = say(multilingual), RowAlignment.follow
    bad, good = job(multilingual, "What has another length.", seed=BAD_SEED), job(multilingual)
    letters = len(bad.item.pieces[0].ids) + 2

    def failing(judge: RowAlignment, attention: Any, last_token: int) -> Any:
        if judge._end - judge._first == letters and judge._steps == 3:
            raise IndexError("the judge lost its place")
        return follow(judge, attention, last_token)

    monkeypatch.setattr(RowAlignment, "follow", failing)
    made = outcomes(multilingual, [bad, good])
    assert isinstance(made[0], IndexError)
    assert same(multilingual.postprocess(made[1]), wanted)


def test_a_single_letter_is_spoken_beside_others_and_alone(multilingual: ChatterboxTextToSpeech) -> None:
    texts = ["A", "I", "ab", "Hello there, this is longer."]
    alone = [say(multilingual, text) for text in texts]
    made = outcomes(multilingual, [job(multilingual, text) for text in texts])
    assert all(same(multilingual.postprocess(one), other) for one, other in zip(made, alone, strict=True))


@pytest.mark.parametrize("place", ["aiservices.handlers.chatterbox.flow.Flow.spectrograms", "torch.stack"])
def test_a_device_out_of_memory_is_for_the_driver_to_deal_with(
    handler: ChatterboxTextToSpeech, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    import torch

    wanted = say(handler)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(place, full)
        handler.admit([job(handler)])
        with pytest.raises(torch.OutOfMemoryError):
            step_for_ever(handler)
    handler.reset()
    assert same(say(handler), wanted)


def test_whose_fault_an_error_is() -> None:
    from aiservices.handlers.chatterbox.faults import is_of_device

    assert not is_of_device(IndexError("max(): Expected reduction dim 1 to have non-zero size."))
    assert is_of_device(RuntimeError("CUDA error: device-side assert triggered"))
    assert is_of_device(MemoryError())
    assert is_of_device(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"))
