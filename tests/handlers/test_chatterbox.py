"""The Chatterbox service on tiny checkpoints of the library's own classes."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import wait
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiservices.errors import ConfigError, InvalidInput, JobFailed, ServiceError
from aiservices.handler import Task
from aiservices.handlers import audio
from aiservices.handlers.chatterbox import ChatterboxTextToSpeech
from aiservices.handlers.chatterbox.finishing import WAIT_S
from aiservices.handlers.chatterbox.request import ChatterboxRequest
from aiservices.handlers.chatterbox.sound import Finish
from aiservices.handlers.speech_contract import TextToSpeechInput, TextToSpeechOutput
from tests.handlers import tiny_chatterbox
from tests.handlers.speech_fakes import FakeContext, Samples, as_file, heard, voice_like

if find_spec("chatterbox") is None:
    pytest.skip("the chatterbox extra is not installed: scripts/install chatterbox", allow_module_level=True)

pytestmark = [
    pytest.mark.chatterbox,
    # What chatterbox-tts 0.1.7 calls and torch and its friends have deprecated since.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

SENTENCE = "Hello there, this is a test."
LONG = " ".join(f"This is sentence number {number}, and it goes on for a while." for number in range(16))
"""Four pieces of 300 characters."""
LOW, HIGH = as_file(voice_like(110, seconds=5.2)), as_file(voice_like(260, seconds=5.2))
PLAIN = {"watermark": False, "loudness_lufs": None}
"""What the model makes, untouched but for its edges."""


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        tiny_chatterbox.small_modules(patch)
        yield patch


@pytest.fixture(scope="module")
def checkpoint(patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chatterbox")
    tiny_chatterbox.write_checkpoint(folder)
    return folder


def loaded(checkpoint: Path, options: Mapping[str, Any] | None = None) -> ChatterboxTextToSpeech:
    engine = ChatterboxTextToSpeech()
    engine.load(checkpoint, "cpu", {"cpu_threads": 1, **(options or {})})
    return engine


@pytest.fixture(scope="module")
def voices_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voices")
    (folder / "anna.wav").write_bytes(HIGH)
    (folder / "anna.json").write_text(json.dumps({"description": "a hum", "language": "en"}))
    (folder / "readme.txt").write_text("not a voice")
    return folder


@pytest.fixture(scope="module")
def engine(checkpoint: Path, voices_dir: Path) -> Iterator[ChatterboxTextToSpeech]:
    engine = loaded(checkpoint, {**PLAIN, "voices_dir": str(voices_dir)})
    yield engine
    engine.unload()


@pytest.fixture(scope="module")
def marking(checkpoint: Path) -> Iterator[ChatterboxTextToSpeech]:
    """With watermark and loudness, as they are unless somebody turns them off."""
    engine = loaded(checkpoint)
    yield engine
    engine.unload()


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to break: links to the weights, so that nothing large is copied."""
    for file in checkpoint.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    return tmp_path


class Listener(FakeContext):
    """Takes a stream too."""

    def __init__(self, clip: bytes = b"") -> None:
        super().__init__(clip)
        self.chunks: list[Any] = []

    def emit(self, chunk: Any) -> None:
        self.chunks.append(chunk)


def job(
    engine: ChatterboxTextToSpeech,
    text: str = SENTENCE,
    clip: bytes | None = None,
    *,
    context: FakeContext | None = None,
    **fields: Any,
) -> Task[ChatterboxRequest]:
    """One request as the model's thread gets it."""
    context = context or Listener()
    if clip is not None:
        context.clip, fields["audio_prompt_url"] = clip, "https://host/a.wav"
    asked = TextToSpeechInput(text=text, **{"seed": 1, **fields})
    engine.validate(asked)
    return Task(asyncio.run(engine.preprocess(asked, context)), context)


def speak(engine: ChatterboxTextToSpeech, jobs: Sequence[Task[ChatterboxRequest]]) -> list[TextToSpeechOutput]:
    """Speak these together."""
    results = dict[Task[ChatterboxRequest], Any]()
    engine.admit(jobs)
    for _ in range(20_000):
        results.update(engine.step())
        if len(results) == len(jobs):
            break
    for result in results.values():
        if isinstance(result, Exception):
            engine.evict(jobs)
            raise result
    return [engine.postprocess(results[one]) for one in jobs]


def say(engine: ChatterboxTextToSpeech, *given: Any, **fields: Any) -> TextToSpeechOutput:
    (output,) = speak(engine, [job(engine, *given, **fields)])
    return output


def samples_of(output: TextToSpeechOutput) -> Samples:
    return heard(output)[0]


def same(one: TextToSpeechOutput, other: TextToSpeechOutput) -> bool:
    """Whether they differ by no more than rounding: an added row changes the order of sums."""
    ours, theirs = samples_of(one), samples_of(other)
    return len(ours) == len(theirs) and float(np.abs(ours - theirs).max()) < 1e-4


def test_a_text_becomes_sound_in_the_voice_of_the_checkpoint(marking: ChatterboxTextToSpeech) -> None:
    output = say(marking)
    samples, sample_rate = heard(output)
    assert (output.voice, output.engine, output.sample_rate, output.warnings) == ("default", "chatterbox", 24_000, [])
    assert len(samples) / sample_rate == pytest.approx(output.duration_s, abs=0.01)
    assert 0.5 < output.duration_s < 4
    assert np.abs(samples).max() > 0.01


def test_the_sound_is_the_one_that_the_library_generates_from_the_same_seed(
    engine: ChatterboxTextToSpeech, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    theirs = tiny_chatterbox.import_library().ChatterboxTTS.from_local(checkpoint, "cpu")
    monkeypatch.setattr(theirs.watermarker, "apply_watermark", lambda wave, **_: wave)
    for seed, cfg_weight, exaggeration in ((1, 0.5, 0.5), (2, 0.8, 1.1)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            whole = theirs.generate(SENTENCE, cfg_weight=cfg_weight, exaggeration=exaggeration)[0].numpy()
        ours = samples_of(say(engine, seed=seed, cfg_weight=cfg_weight, exaggeration=exaggeration))
        middle = ours[400:-400]  # the rest is faded
        places = np.lib.stride_tricks.sliding_window_view(whole, len(middle))[:24_000]
        assert np.abs(places - middle).max(axis=1).min() < 1e-4


def test_a_seed_gives_the_same_speech_again_and_leaves_the_global_generator_alone(
    engine: ChatterboxTextToSpeech,
) -> None:
    import torch

    before = torch.random.get_rng_state()
    first = say(engine)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not same(first, say(engine, seed=2))
    assert not same(first, say(engine, seed=None))
    assert same(first, say(engine))


@pytest.mark.parametrize(
    ("count", "callers"), [(16, 6), pytest.param(64, 16, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def test_many_jobs_at_once_each_sound_as_alone(engine: ChatterboxTextToSpeech, count: int, callers: int) -> None:
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
    jobs = [job(engine, **fields) for fields in asked]
    waiting, results = list(jobs), dict[Task[ChatterboxRequest], Any]()
    while len(results) < count:
        under_way = count - len(waiting) - len(results)
        engine.admit([waiting.pop(0) for _ in range(min(callers - under_way, len(waiting)))])
        results.update(engine.step())
    for fields, one in zip(asked, jobs, strict=True):
        assert same(engine.postprocess(results[one]), say(engine, **fields))


def test_two_voices_in_turn_are_never_swapped(engine: ChatterboxTextToSpeech) -> None:
    own, low, high = say(engine), say(engine, clip=LOW), say(engine, clip=HIGH)
    assert not same(own, low)
    assert not same(low, high)
    mixed = speak(engine, [job(engine, clip=clip) for clip in (HIGH, None, LOW, HIGH)])
    for speech, wanted in zip(mixed, (high, own, low, high), strict=True):
        assert same(speech, wanted)
    assert (low.voice, low.warnings) == ("audio_prompt", [])


def test_a_named_voice_is_taken_from_its_file(engine: ChatterboxTextToSpeech) -> None:
    assert engine.voices == ("default", "anna")
    assert [(info.name, info.description, info.language) for info in engine.voices_offered()][1:] == [
        ("anna", "a hum", "en")
    ]
    assert same(say(engine, voice="anna"), say(engine, clip=HIGH))
    with pytest.raises(InvalidInput, match=r"^\$\.voice: unknown voice 'bob'; there are: default, anna$"):
        say(engine, voice="bob")


def test_what_the_model_makes_of_a_clip_is_kept_beside_it(
    engine: ChatterboxTextToSpeech, checkpoint: Path, voices_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiservices.handlers.chatterbox.voices import VoiceStore

    (kept,) = voices_dir.glob("anna.*.voice")
    wanted = say(engine, voice="anna")
    with monkeypatch.context() as unable:
        unable.setattr(VoiceStore, "make", None)
        again = loaded(checkpoint, {**PLAIN, "voices_dir": str(voices_dir)})
    assert same(say(again, voice="anna"), wanted)
    kept.write_bytes(b"broken")
    mended = loaded(checkpoint, {**PLAIN, "voices_dir": str(voices_dir)})
    assert same(say(mended, voice="anna"), wanted)
    assert kept.stat().st_size > 1000


def test_a_prompt_wins_over_a_named_voice_and_the_answer_says_so(engine: ChatterboxTextToSpeech) -> None:
    speech = say(engine, clip=LOW, voice="anna")
    assert same(speech, say(engine, clip=LOW))
    assert speech.warnings == ["voice 'anna' was not used: audio_prompt_url gives the voice"]


def test_the_voices_of_prompts_are_made_once_and_their_number_is_bounded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiservices.handlers.chatterbox.voices import VoiceStore

    engine = loaded(checkpoint, {**PLAIN, "cached_voices": 2})
    made: list[str] = []
    make = VoiceStore.make

    def counted(store: VoiceStore, clip: Any) -> Any:
        made.append(clip.digest)
        return make(store, clip)

    monkeypatch.setattr(VoiceStore, "make", counted)
    other = as_file(voice_like(180, seconds=3))
    for clip in (LOW, HIGH, LOW, other, LOW, HIGH):  # HIGH was the one not used for longest when other came
        say(engine, "Hi.", clip)
    assert len(made) == 4
    assert len(engine._ready.voices) == 2


def test_a_voice_is_not_changed_by_its_use_and_holds_no_gradients(engine: ChatterboxTextToSpeech) -> None:
    import torch

    say(engine, clip=LOW)
    voice = next(reversed(engine._ready.voices._made.values()))
    tensors = [voice.speaker, voice.prompt, voice.gen.tokens, voice.gen.frames, voice.gen.embedding]
    before = [tensor.clone() for tensor in tensors]
    say(engine, clip=LOW, exaggeration=1.5)
    assert all(torch.equal(one, other) for one, other in zip(tensors, before, strict=True))
    assert not any(tensor.requires_grad for tensor in tensors)
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) < 400_000


@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute where nobody else computes
def test_memory_does_not_grow_with_the_number_of_voices(engine: ChatterboxTextToSpeech) -> None:
    from aiservices.handlers.chatterbox.voices import Clip

    at_24k, at_16k = (voice_like(120, seconds=3, sample_rate=rate) for rate in (24_000, 16_000))
    sizes = []
    for number in range(500):
        clip = Clip(np.roll(at_24k, 3 * number), np.roll(at_16k, 2 * number), f"voice {number}")
        engine._ready.voices.of_clip(clip)
        if number in (19, 499):
            say(engine, "Hi.", LOW)
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    assert len(engine._ready.voices) == 64
    assert sizes[1] - sizes[0] < 100e6


@pytest.mark.parametrize(
    "fields",
    [
        {"cfg_weight": 0.0},
        {"cfg_weight": 1.0},
        {"temperature": 2.0},
        {"repetition_penalty": 3.0},
        {"top_p": 0.3},
        {"min_p": 0.9},
    ],
)
def test_each_control_changes_the_speech(engine: ChatterboxTextToSpeech, fields: dict[str, Any]) -> None:
    assert not same(say(engine, **fields), say(engine))


def test_exaggeration_reaches_the_model_and_stays_with_its_request(engine: ChatterboxTextToSpeech) -> None:
    seen: list[float] = []
    hook = engine._ready.model.t3.cond_enc.emotion_adv_fc.register_forward_pre_hook(
        lambda _module, inputs: seen.append(round(float(inputs[0]), 3))
    )
    speak(engine, [job(engine, exaggeration=value) for value in (1.7, 0.5, 0.0)])
    hook.remove()
    assert seen == [1.7, 0.5, 0.0]


def test_another_tempo_changes_the_length_alone(engine: ChatterboxTextToSpeech) -> None:
    usual, fast = (say(engine, speed=speed).duration_s for speed in (1.0, 2.0))
    assert fast == pytest.approx(usual / 2, abs=0.05)


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "ogg", "opus", "pcm"])
def test_every_format_comes_at_the_sample_rate_asked_for(engine: ChatterboxTextToSpeech, form: str) -> None:
    output = say(engine, format=form, sample_rate=16_000)
    samples, sample_rate = heard(output)
    assert (output.format, output.sample_rate, sample_rate) == (form, 16_000, 16_000)
    assert len(samples) / sample_rate == pytest.approx(say(engine).duration_s, abs=0.1)


def test_loudness_is_brought_to_its_target(checkpoint: Path, engine: ChatterboxTextToSpeech) -> None:
    pyloudnorm: Any = importlib.import_module("pyloudnorm")
    louder = loaded(checkpoint, {**PLAIN, "loudness_lufs": -16.0})
    for text in (SENTENCE, LONG):
        loudness = pyloudnorm.Meter(24_000).integrated_loudness(samples_of(say(louder, text)))
        assert loudness == pytest.approx(-16, abs=1.5)


# Long text


def gaps(samples: Samples, at_least_s: float) -> list[tuple[int, int]]:
    """Where there is silence."""
    silent = np.flatnonzero(samples == 0)
    runs = np.split(silent, np.flatnonzero(np.diff(silent) > 1) + 1)
    return [(int(run[0]), int(run[-1])) for run in runs if len(run) >= at_least_s * 24_000]


def jump_at(pauses: Sequence[tuple[int, int]], samples: Samples) -> float:
    """The largest jump within 10 ms of the pauses, as a share of the largest elsewhere."""
    jumps = np.abs(np.diff(samples))
    inside = np.ones(len(jumps), dtype=bool)
    for begin, end in pauses:
        inside[begin - 240 : end + 240] = False
    at_joints = max(float(jumps[begin - 240 : end + 240].max()) for begin, end in pauses)
    return at_joints / float(jumps[inside].max())


def test_long_text_is_said_in_parts_that_join_without_a_click(engine: ChatterboxTextToSpeech) -> None:
    context = Listener()
    samples = samples_of(say(engine, LONG, context=context))
    assert context.fractions[-1] == 1
    assert len(context.fractions) == 4
    pauses = gaps(samples, 0.14)
    assert len(pauses) == 3
    assert jump_at(pauses, samples) <= 1
    assert max(abs(float(samples[0])), abs(float(samples[-1]))) < 1e-3


def test_a_paragraph_has_a_longer_pause(engine: ChatterboxTextToSpeech) -> None:
    assert len(gaps(samples_of(say(engine, "One two three.\n\nFour five six.")), 0.28)) == 1


def test_a_stream_hands_out_the_first_part_before_the_second_is_made_and_is_the_whole(
    engine: ChatterboxTextToSpeech,
) -> None:
    context = Listener()
    (task,) = [job(engine, LONG, context=context, stream=True)]
    engine.admit([task])
    ended: list[Any] = []
    while not context.fractions:
        ended += engine.step()
    speaker = engine._ready.engine
    assert speaker._jobs[0].running == 0  # only the first part has been made so far
    wait(speaker._finishing._pending)
    assert [chunk["part"] for chunk in context.chunks] == [0]
    while not ended:
        ended += engine.step()
    whole = samples_of(engine.postprocess(ended[0][1]))
    assert [chunk["part"] for chunk in context.chunks] == [0, 1, 2, 3]
    streamed = np.concatenate([np.frombuffer(chunk["audio"], "<i2") for chunk in context.chunks])
    assert np.abs(streamed / 32767 - whole).max() < 1e-4
    assert same(say(engine, LONG), say(engine, LONG, stream=True))


def test_a_job_that_is_taken_out_leaves_the_others_alone(engine: ChatterboxTextToSpeech) -> None:
    wanted = say(engine)
    long, short = job(engine, LONG), job(engine)
    engine.admit([long, short])
    for _ in range(10):
        assert engine.step() == []
    engine.evict([long])
    assert len(engine._ready.engine._t3) == 1
    results = dict[Any, Any]()
    while not results:
        results.update(engine.step())
    assert list(results) == [short]
    assert same(engine.postprocess(results[short]), wanted)
    assert not engine._ready.engine._jobs


# Finishing


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
    engine: ChatterboxTextToSpeech, gate: threading.Event
) -> None:
    context = Listener()
    one = job(engine, LONG, context=context)
    engine.admit([one])
    while not context.fractions or context.fractions[-1] < 1:
        assert engine.step() == []
    for _ in range(3):
        assert engine.step() == [], "postprocess would wait for the finishing pool in threads that others need"
    gate.set()
    results = dict[Any, Any]()
    while not results:
        results.update(engine.step())
    gate.clear()
    assert len(gaps(samples_of(engine.postprocess(results[one])), 0.14)) == 3


def test_a_step_waits_for_the_finishing_pool_only_if_nothing_else_is_left_to_do_and_only_a_moment(
    engine: ChatterboxTextToSpeech, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, waits = Listener(), list[float]()

    def noted(futures: Any, timeout: float, return_when: str) -> Any:
        waits.append(timeout)
        gate.set()
        return wait(futures)

    monkeypatch.setattr("aiservices.handlers.chatterbox.finishing.wait", noted)
    one = job(engine, LONG, context=context, stream=True)  # its first piece is finished while the others are spoken
    engine.admit([one])
    results: Sequence[Any] = []
    while not context.fractions or context.fractions[-1] < 1:
        assert not waits
        results = engine.step()
    assert [task for task, _ in results] == [one]
    assert waits == [WAIT_S]
    assert WAIT_S <= 0.05, "a job that joins waits as long"


def test_a_piece_that_cannot_be_finished_fails_its_job_alone(
    engine: ChatterboxTextToSpeech, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, apply = say(engine), Finish.apply
    bad, good = job(engine, LONG, speed=1.5), job(engine)

    def breaking(finish: Finish, samples: Samples, pause_s: float) -> Samples:
        if finish is bad.item.finish:
            raise ValueError("no sound of mine")
        return apply(finish, samples, pause_s)

    monkeypatch.setattr(Finish, "apply", breaking)
    engine.admit([bad, good])
    ended: list[Any] = []
    while len(ended) < 2:
        ended += engine.step()
    results = dict(ended)
    assert isinstance(results[bad], ValueError)
    assert same(engine.postprocess(results[good]), wanted)
    assert engine.step() == []


def test_a_job_that_is_taken_out_while_it_is_finished_leaves_nothing_behind(
    engine: ChatterboxTextToSpeech, gate: threading.Event
) -> None:
    context = Listener()
    one, other = job(engine, LONG, context=context), job(engine)
    engine.admit([one])
    while not context.fractions or context.fractions[-1] < 1:
        engine.step()
    engine.evict([one])
    assert not engine._ready.engine._finishing._pending
    gate.set()
    engine.admit([other])
    results = dict[Any, Any]()
    while not results:
        results.update(engine.step())
    assert list(results) == [other]


TWENTY_MINUTES = " ".join(f"Sentence {number} of a text that takes twenty minutes to be read." for number in range(300))
"""18,000 characters; 900 are read in a minute."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twenty_minutes_of_text_are_streamed_from_the_first_part_on_and_join_without_a_click(
    engine: ChatterboxTextToSpeech,
) -> None:
    context = Listener()
    task = job(engine, TWENTY_MINUTES, context=context, stream=True, format="flac")
    engine.admit([task])
    ended: list[Any] = []
    while not context.fractions:
        ended += engine.step()
    speaker = engine._ready.engine
    wait(speaker._finishing._pending)
    assert [chunk["part"] for chunk in context.chunks] == [0]
    assert speaker._jobs[0].running == 0  # nobody has begun with the second
    while not ended:
        ended += engine.step()
    samples = samples_of(engine.postprocess(ended[0][1]))
    parts = context.chunks[0]["parts"]
    assert parts > 60
    assert [chunk["part"] for chunk in context.chunks] == list(range(parts))
    assert context.fractions == sorted(context.fractions)
    assert len(samples) > 60 * 24_000
    assert jump_at(gaps(samples, 0.14), samples) <= 1
    assert len(gaps(samples, 0.14)) == parts - 1


@pytest.mark.slow
def test_twenty_minutes_of_text_end_half_way_within_two_steps(engine: ChatterboxTextToSpeech) -> None:
    context = Listener()
    task = job(engine, TWENTY_MINUTES, context=context, stream=True)
    engine.admit([task])
    while not context.fractions or context.fractions[-1] < 0.5:
        assert engine.step() == []
    engine.evict([task])
    heard_so_far = len(context.fractions)
    for _ in range(2):
        engine.step()
    speaker = engine._ready.engine
    assert (len(speaker._t3), speaker._jobs, speaker._parts, speaker._unrendered) == (0, [], {}, [])
    assert len(context.fractions) == heard_so_far


def test_a_part_at_odds_with_its_text_is_drawn_again_and_then_said_so(checkpoint: Path) -> None:
    engine = loaded(checkpoint, {**PLAIN, "max_new_tokens": 25})
    seeds: list[int] = []
    join = engine._ready.engine._t3.join

    def counted(requests: Any) -> None:
        seeds.extend(request.seed for request in requests)
        join(requests)

    engine._ready.engine._t3.join = counted  # type: ignore[method-assign]  # to see what is drawn
    speech = say(engine)
    assert seeds[0] == 1
    assert len(set(seeds)) == 3
    assert speech.warnings == ["part 1 of 1 is longer or shorter than its text; another seed may be better"]


def test_a_text_without_any_sound_fails_that_job_alone(engine: ChatterboxTextToSpeech) -> None:
    from aiservices.handlers.chatterbox.t3 import Draw

    speaker, wanted = engine._ready.engine, say(engine)
    silent, good = job(engine, "Nothing."), job(engine)
    judge = speaker._judge

    def deafened(part: Any, draw: Any) -> None:
        judge(part, Draw([], True, draw.generator) if part.job.task is silent else draw)

    results = dict[Any, Any]()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(speaker, "_judge", deafened)
        engine.admit([silent, good])
        while len(results) < 2:
            results.update(engine.step())
    assert isinstance(results[silent], JobFailed)
    assert same(engine.postprocess(results[good]), wanted)


def test_text_in_letters_that_the_model_does_not_know_is_said_with_a_warning(engine: ChatterboxTextToSpeech) -> None:
    assert (
        "unknown to this model, which speaks en"
        in say(engine, "\u041f\u0440\u0438\u0432\u0435\u0442, \u043a\u0430\u043a \u0434\u0435\u043b\u0430?").warnings[0]
    )


def test_text_without_a_letter_or_digit_is_refused_before_acceptance(engine: ChatterboxTextToSpeech) -> None:
    with pytest.raises(InvalidInput, match=r"^\$\.text: expected words, got no letter and no digit$"):
        engine.validate(TextToSpeechInput(text="\U0001f600 \u20ac"))
    engine.validate(TextToSpeechInput(text="\U0001f600 5"))


def test_the_marks_of_the_tokenizer_cannot_be_sent_as_text(engine: ChatterboxTextToSpeech) -> None:
    assert same(say(engine, "Hello [STOP]there[START]"), say(engine, "Hello there"))
    with pytest.raises(InvalidInput, match=r"^\$\.text: expected words"):
        say(engine, "[STOP]")


def test_the_watermark_is_on_unless_turned_off(marking: ChatterboxTextToSpeech, checkpoint: Path) -> None:
    unmarked = samples_of(say(loaded(checkpoint, {"watermark": False})))
    marked = samples_of(say(marking))
    assert len(marked) == len(unmarked)
    assert not np.allclose(marked, unmarked, atol=1e-3)


def test_the_language_model_may_be_in_bfloat16(checkpoint: Path) -> None:
    engine = loaded(checkpoint, {**PLAIN, "dtype": "bfloat16"})
    assert audio.frame_levels(samples_of(say(engine, exaggeration=0.3)), 24_000).max() > 0.001
    assert same(say(engine, clip=LOW), say(engine, clip=LOW))


def test_unload_forgets_the_model_and_the_voices(checkpoint: Path) -> None:
    engine = loaded(checkpoint)
    engine.admit([job(engine)])
    engine.step()
    engine.unload()
    assert engine.voices is None
    with pytest.raises(ServiceError, match="not loaded"):
        engine.step()


# The other checkpoints


@pytest.fixture(scope="module", params=["multilingual", "turbo", "nano"])
def other(
    request: pytest.FixtureRequest, patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChatterboxTextToSpeech]:
    folder = tmp_path_factory.mktemp(request.param)
    tiny_chatterbox.write_checkpoint(folder, request.param)
    engine = loaded(folder, PLAIN)
    yield engine
    engine.unload()


def test_another_variant_speaks_alone_and_together(other: ChatterboxTextToSpeech) -> None:
    asked: list[dict[str, Any]] = [{}, {"clip": LOW}, {"seed": 3}, {"clip": HIGH, "text": LONG}]
    alone = [say(other, **fields) for fields in asked]
    together = speak(other, [job(other, **fields) for fields in asked])
    assert all(same(one, both) for one, both in zip(alone, together, strict=True))
    assert min(output.duration_s for output in alone) > 0.1


def test_a_language_is_spoken_or_refused(other: ChatterboxTextToSpeech, engine: ChatterboxTextToSpeech) -> None:
    if len(other._ready.model.reader.languages) > 1:
        assert other._ready.model.reader.languages == ["de", "en", "fr", "zh"]
        assert not same(say(other, language="de"), say(other, language="fr"))
    for refusing in (other, engine):
        with pytest.raises(InvalidInput, match=r"^\$\.language: this model speaks .*, not 'xx'$"):
            say(refusing, language="xx")


def test_a_variant_says_what_it_does_not_heed_and_wants_a_longer_clip(other: ChatterboxTextToSpeech) -> None:
    if len(other._ready.model.reader.languages) > 1:
        assert say(other, cfg_weight=0.0).warnings == []
        return
    name = other._ready.model.variant.name.title()
    assert say(other, cfg_weight=0.2).warnings == [f"cfg_weight has no effect on {name}"]
    with pytest.raises(InvalidInput, match=r"^\$\.audio_prompt_url: expected at least 5 s of speech for this model"):
        say(other, clip=as_file(voice_like(110, seconds=4)))


# Loading


def test_without_a_voice_of_its_own_the_request_has_to_bring_one(copied: Path) -> None:
    (copied / "conds.pt").unlink()
    engine = loaded(copied)
    with pytest.raises(InvalidInput, match="unknown voice 'default'; there are: none, give audio_prompt_url"):
        say(engine)
    assert say(engine, clip=LOW).voice == "audio_prompt"


def test_no_model_and_a_folder_that_is_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="needs a model"):
        ChatterboxTextToSpeech().load(None, "cpu", {})
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ServiceError, match=r"it lacks ve\.safetensors, t3_cfg\.safetensors, s3gen\.safetensors$"):
        ChatterboxTextToSpeech().load(tmp_path, "cpu", {})


def rewrite(file: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    change(weights)
    file.unlink()  # the file is a link to the one that the other tests use
    save_file(weights, file)


def test_a_renamed_weight_that_the_library_would_swallow_is_named(copied: Path) -> None:
    name = "flow.encoder_proj.weight"
    rewrite(copied / "s3gen.safetensors", lambda weights: weights.update({f"x.{name}": weights.pop(name)}))
    with pytest.raises(ServiceError, match=rf"s3gen\.safetensors are missing: {name}; unknown: x\.{name}$"):
        loaded(copied)


@pytest.mark.parametrize("file", ["t3_cfg.safetensors", "ve.safetensors"])
def test_a_missing_weight_is_named(copied: Path, file: str) -> None:
    rewrite(copied / file, lambda weights: weights.pop(next(iter(weights))))
    with pytest.raises(
        ServiceError, match=r"the checkpoint does not fit: weights in .* are missing: .*; unknown: none$"
    ):
        loaded(copied)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"default_voice": "bob"}, r"options\.default_voice: unknown voice 'bob'; there are: default"),
        ({"voices_dir": "/does/not/exist"}, r"options\.voices_dir: no such folder"),
        ({"watermarks": False}, r"options\.watermarks: .*'watermark'"),
        ({"dtype": "float16"}, r"options\.dtype"),
        ({"default_language": "de"}, r"options\.default_language: the model does not speak 'de'; it speaks en"),
    ],
)
def test_a_wrong_option_is_named(checkpoint: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        loaded(checkpoint, options)


def test_a_voice_file_that_holds_no_voice_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bob.wav").write_bytes(as_file(voice_like(110, seconds=0.5)))
    with pytest.raises(ConfigError, match=r"options\.voices_dir: bob\.wav: expected 3 to 60 s"):
        loaded(checkpoint, {"voices_dir": str(tmp_path)})


def test_a_missing_package_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perth", None)
    with pytest.raises(ServiceError, match=r"not installed whole .*perth.*scripts/install chatterbox"):
        loaded(checkpoint)


def test_a_watermark_that_cannot_be_loaded_is_an_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["perth"], "PerthImplicitWatermarker", None)
    with pytest.raises(ServiceError, match="setuptools<82"):
        loaded(checkpoint)
