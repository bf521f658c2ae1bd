"""Many jobs and long texts at once: pieces, redraws, streams, jobs that leave."""

from __future__ import annotations

from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiservices.errors import JobFailed
from aiservices.handler import Task
from aiservices.handlers.chatterbox import ChatterboxTextToSpeech
from aiservices.handlers.chatterbox.request import ChatterboxRequest
from tests.handlers.chatterbox.speaking import (
    HIGH,
    LONG,
    LOW,
    NEEDS_CHATTERBOX,
    PLAIN,
    SENTENCE,
    Listener,
    gaps,
    job,
    jump_at,
    loaded,
    same,
    samples_of,
    say,
)
from tests.handlers.speech_fakes import as_file, voice_like

pytestmark = NEEDS_CHATTERBOX


@pytest.mark.timeout(180)  # as the library calculates, on a busy machine
@pytest.mark.parametrize(
    ("count", "callers"), [(16, 6), pytest.param(64, 16, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def test_many_jobs_at_once_each_sound_as_alone(handler: ChatterboxTextToSpeech, count: int, callers: int) -> None:
    clips = [None, LOW, HIGH, *(as_file(voice_like(hertz, seconds=4)) for hertz in (90, 140, 180, 220, 330))]
    asked: list[dict[str, Any]] = [
        {
            "text": f"Say {number} words, please."[: 12 + number % 12],
            "clip": clips[number % len(clips)],
            "seed": number,
            "cfg_weight": (0.5, 0.0, 1.0)[number % 3],
            "temperature": (0.8, 1.2)[number % 2],
            "exaggeration": 0.1 * (number % 7),
        }
        for number in range(count)
    ]
    jobs = [job(handler, **fields) for fields in asked]
    waiting, results = list(jobs), dict[Task[ChatterboxRequest], Any]()
    while len(results) < count:
        under_way = count - len(waiting) - len(results)
        handler.admit([waiting.pop(0) for _ in range(min(callers - under_way, len(waiting)))])
        results.update(handler.step())
    for fields, one in zip(asked, jobs, strict=True):
        assert same(handler.postprocess(results[one]), say(handler, **fields))


def test_long_text_is_said_in_parts_that_join_without_a_click(handler: ChatterboxTextToSpeech) -> None:
    context = Listener()
    samples = samples_of(say(handler, LONG, context=context))
    assert context.fractions[-1] == 1
    assert len(context.fractions) == 4
    pauses = gaps(samples, 0.14)
    assert len(pauses) == 3
    assert jump_at(pauses, samples) <= 1
    assert max(abs(float(samples[0])), abs(float(samples[-1]))) < 1e-3


def test_a_paragraph_has_a_longer_pause(handler: ChatterboxTextToSpeech) -> None:
    assert len(gaps(samples_of(say(handler, "One two three.\n\nFour five six.")), 0.28)) == 1


def test_a_stream_hands_out_the_first_part_before_the_second_is_made_and_is_the_whole(
    handler: ChatterboxTextToSpeech,
) -> None:
    context = Listener()
    (task,) = [job(handler, LONG, context=context, stream=True)]
    handler.admit([task])
    ended: list[Any] = []
    while not context.fractions:
        ended += handler.step()
    engine = handler._ready.engine
    assert engine._jobs[0].running == 0  # only the first part has been made so far
    wait(engine._finishing._pending)
    assert [chunk["part"] for chunk in context.chunks] == [0]
    while not ended:
        ended += handler.step()
    whole = samples_of(handler.postprocess(ended[0][1]))
    assert [chunk["part"] for chunk in context.chunks] == list(range(len(task.item.pieces)))
    assert len(context.chunks[0]["text"]) < 60 < len(context.chunks[1]["text"]), "the first is to be heard soon"
    streamed = np.concatenate([np.frombuffer(chunk["audio"], "<i2") for chunk in context.chunks])
    assert np.abs(streamed / 32767 - whole).max() < 1e-4
    assert same(say(handler, SENTENCE), say(handler, SENTENCE, stream=True))


def test_a_job_that_is_taken_out_leaves_the_others_alone(handler: ChatterboxTextToSpeech) -> None:
    wanted = say(handler)
    long, short = job(handler, LONG), job(handler)
    handler.admit([long, short])
    for _ in range(10):
        assert handler.step() == []
    handler.evict([long])
    assert len(handler._ready.engine._t3) == 1
    results = dict[Any, Any]()
    while not results:
        results.update(handler.step())
    assert list(results) == [short]
    assert same(handler.postprocess(results[short]), wanted)
    assert not handler._ready.engine._jobs


TWENTY_MINUTES = " ".join(f"Sentence {number} of a text that takes twenty minutes to be read." for number in range(300))
"""18,000 characters; 900 are read in a minute."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twenty_minutes_of_text_are_streamed_from_the_first_part_on_and_join_without_a_click(
    handler: ChatterboxTextToSpeech,
) -> None:
    context = Listener()
    task = job(handler, TWENTY_MINUTES, context=context, stream=True, format="flac")
    handler.admit([task])
    ended: list[Any] = []
    while not context.fractions:
        ended += handler.step()
    engine = handler._ready.engine
    wait(engine._finishing._pending)
    assert [chunk["part"] for chunk in context.chunks] == [0]
    assert engine._jobs[0].running == 0  # nobody has begun with the second
    while not ended:
        ended += handler.step()
    samples = samples_of(handler.postprocess(ended[0][1]))
    parts = context.chunks[0]["parts"]
    assert parts > 60
    assert [chunk["part"] for chunk in context.chunks] == list(range(parts))
    assert context.fractions == sorted(context.fractions)
    assert len(samples) > 60 * 24_000
    assert jump_at(gaps(samples, 0.14), samples) <= 1
    assert len(gaps(samples, 0.14)) == parts - 1


@pytest.mark.slow
def test_twenty_minutes_of_text_end_half_way_within_two_steps(handler: ChatterboxTextToSpeech) -> None:
    context = Listener()
    task = job(handler, TWENTY_MINUTES, context=context, stream=True)
    handler.admit([task])
    while not context.fractions or context.fractions[-1] < 0.5:
        assert handler.step() == []
    handler.evict([task])
    heard_so_far = len(context.fractions)
    for _ in range(2):
        handler.step()
    engine = handler._ready.engine
    assert (len(engine._t3), engine._jobs, engine._parts, engine._unrendered) == (0, [], {}, [])
    assert len(context.fractions) == heard_so_far


def test_a_part_at_odds_with_its_text_is_drawn_again_and_then_said_so(checkpoint: Path) -> None:
    handler = loaded(checkpoint, {**PLAIN, "max_new_tokens": 25})
    seeds: list[int] = []
    join = handler._ready.engine._t3.join

    def counted(requests: Any) -> Any:
        seeds.extend(request.seed for request in requests)
        return join(requests)

    handler._ready.engine._t3.join = counted  # type: ignore[method-assign]  # to see what is drawn
    speech = say(handler)
    assert seeds[0] == 1
    assert len(set(seeds)) == 3
    assert speech.warnings == ["part 1 of 1 is longer or shorter than its text; another seed may be better"]


def test_a_text_without_any_sound_fails_that_job_alone(handler: ChatterboxTextToSpeech) -> None:
    from aiservices.handlers.chatterbox.t3_rows import Draw

    engine, wanted = handler._ready.engine, say(handler)
    silent, good = job(handler, "Nothing."), job(handler)
    judge = engine._judge

    def deafened(part: Any, draw: Any) -> None:
        judge(part, Draw([], True, draw.generator) if part.job.task is silent else draw)

    results = dict[Any, Any]()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "_judge", deafened)
        handler.admit([silent, good])
        while len(results) < 2:
            results.update(handler.step())
    assert isinstance(results[silent], JobFailed)
    assert same(handler.postprocess(results[good]), wanted)
