"""The espeak-ng engine: real speech, in the library that the package ships."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from aiservices.errors import ConfigError, InvalidInput, JobFailed, ServiceError
from aiservices.handlers import audio, espeak, espeak_process
from aiservices.handlers.espeak import VOICES, EspeakTextToSpeech
from aiservices.handlers.speech import Speech
from tests.handlers.speech_fakes import FakeContext, Samples, as_file, heard, task, voice_like

SENTENCE = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def engine() -> Iterator[EspeakTextToSpeech]:
    engine = EspeakTextToSpeech()
    engine.load(None, "cpu", {})
    yield engine
    engine.unload()


def say(engine: EspeakTextToSpeech, text: str = SENTENCE, clip: bytes | None = None, **fields: Any) -> Speech:
    (speech,) = engine.predict([task(text, clip, **fields)])
    if isinstance(speech, Exception):
        raise speech
    return speech


def samples_of(speech: Speech) -> Samples:
    (samples,) = speech.blocks
    return samples


def seconds(speech: Speech) -> float:
    return len(samples_of(speech)) / speech.sample_rate


def pitch_hz(speech: Speech) -> float:
    pitch = audio.median_pitch_hz(samples_of(speech), speech.sample_rate)
    assert pitch is not None
    return pitch


def spoken_level(samples: Samples, sample_rate: int) -> float:
    levels = audio.frame_levels(samples, sample_rate)
    return float(np.sqrt(np.mean(np.square(levels[levels > levels.max() / 30]))))


@pytest.mark.parametrize("voice", VOICES)
def test_every_voice_speaks_at_one_level(engine: EspeakTextToSpeech, voice: str) -> None:
    output = engine.postprocess(say(engine, voice=voice))
    samples, sample_rate = heard(output)
    assert (output.voice, output.engine, output.warnings) == (voice, "espeak-ng", [])
    assert 1.5 < output.duration_s < 6
    assert np.abs(samples).max() < 0.95
    assert spoken_level(samples, sample_rate) == pytest.approx(audio.SPEECH_LEVEL, rel=0.15)


def test_voices_differ_and_women_speak_higher_than_men(engine: EspeakTextToSpeech) -> None:
    spoken = {voice: samples_of(say(engine, voice=voice)).tobytes() for voice in VOICES}
    assert len(set(spoken.values())) == len(VOICES)
    assert pitch_hz(say(engine, voice="english-us-female")) > 1.5 * pitch_hz(say(engine, voice="english-us"))


def test_without_a_voice_the_default_one_speaks() -> None:
    engine = EspeakTextToSpeech()
    engine.load(None, "cpu", {"default_voice": "german"})
    assert say(engine).voice == "german"


def test_same_request_same_samples_whatever_was_said_before(engine: EspeakTextToSpeech) -> None:
    first = samples_of(say(engine, seed=7))
    say(engine, "Etwas ganz anderes!", voice="german", seed=8)
    assert np.array_equal(first, samples_of(say(engine, seed=7)))


@pytest.mark.parametrize("speed", [0.5, 0.75, 1.5, 2.0])
def test_speed_is_the_speakers_own(engine: EspeakTextToSpeech, speed: float) -> None:
    usual, changed = say(engine), say(engine, speed=speed)
    assert seconds(changed) == pytest.approx(seconds(usual) / speed, rel=0.15)
    assert pitch_hz(changed) == pytest.approx(pitch_hz(usual), rel=0.05)


def test_exaggeration_moves_the_range_of_the_pitch(engine: EspeakTextToSpeech) -> None:
    flat, usual, lively = (say(engine, exaggeration=value) for value in (0.0, 0.5, 1.0))
    assert pitch_hz(flat) < pitch_hz(usual) < pitch_hz(lively)


def test_what_has_no_effect_is_said(engine: EspeakTextToSpeech) -> None:
    speech = say(engine, cfg_weight=0.3, temperature=1.0)
    assert speech.warnings == ["cfg_weight has no effect on espeak-ng", "temperature has no effect on espeak-ng"]


def test_a_batch_is_answered_in_order_and_one_failure_stays_alone(engine: EspeakTextToSpeech) -> None:
    tasks = [task("one"), task("\u200b"), task("three", voice="german")]
    first, second, third = engine.predict(tasks)
    assert isinstance(first, Speech)
    assert isinstance(second, InvalidInput)
    assert isinstance(third, Speech)
    assert third.voice == "german"
    contexts = [each.context for each in tasks]
    assert [context.counted for context in contexts if isinstance(context, FakeContext)] == [
        [("audio_seconds", seconds(first))],
        [],
        [("audio_seconds", seconds(third))],
    ]


# The reference clip


@pytest.mark.parametrize("voice", ["english-us", "english-us-female", "mandarin"])
@pytest.mark.parametrize("wanted_hz", [90, 180, 300])
def test_the_pitch_comes_to_that_of_the_prompt(engine: EspeakTextToSpeech, voice: str, wanted_hz: int) -> None:
    speech = say(engine, clip=as_file(voice_like(wanted_hz)), voice=voice)
    assert pitch_hz(speech) == pytest.approx(wanted_hz, rel=0.12)
    assert speech.voice == voice
    (warning,) = speech.warnings
    assert re.fullmatch(r"not a clone: espeak-ng only takes the pitch of audio_prompt_url, about \d+ Hz", warning)


def test_the_pitch_of_real_speech_is_imitated(engine: EspeakTextToSpeech) -> None:
    model = say(engine, "This is how I speak. One, two, three, four, five, six.", voice="english-gb-female")
    clip = as_file(samples_of(model), sample_rate=model.sample_rate, form="OGG", coding="VORBIS")
    before, after = pitch_hz(say(engine, voice="german")), pitch_hz(say(engine, clip=clip, voice="german"))
    assert abs(after - pitch_hz(model)) < 0.15 * pitch_hz(model) < abs(before - pitch_hz(model))


def test_a_prompt_without_pitch_leaves_the_voice_and_says_so(engine: EspeakTextToSpeech) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(64_000).astype(np.float32)
    speech = say(engine, clip=as_file(noise))
    assert np.array_equal(samples_of(speech), samples_of(say(engine)))
    assert "no pitch could be made out" in speech.warnings[0]


# Hostile text


@pytest.mark.parametrize(
    "text",
    ["<speak>Hi<break time='20s'/>you</speak>", "<audio src='/etc/passwd'>Hi</audio>", "[[h@l'oU]] Hi", "&lt;b&gt; Hi"],
)
def test_markup_is_read_out_and_never_obeyed(engine: EspeakTextToSpeech, text: str) -> None:
    assert 0.5 < seconds(say(engine, text)) < 8


def test_markup_is_not_taken_for_phonemes(engine: EspeakTextToSpeech) -> None:
    phonemes, word = say(engine, "[[h@l'oU]]"), say(engine, "hello")
    assert seconds(phonemes) > 1.5 * seconds(word)


def test_control_characters_give_no_commands(engine: EspeakTextToSpeech) -> None:
    plain, commanded = say(engine, " 50S Hello there"), say(engine, "\x0150S Hello\x00there\x1b")
    assert seconds(commanded) == pytest.approx(seconds(plain), rel=0.05)


@pytest.mark.parametrize(
    "text",
    [
        "مرحبا بالعالم",
        "שלום עולם",
        "Привет, мир",
        "日本語のテキスト",
        "नमस्ते",
        "\u202eabc\u202c",
        "😀 👨\u200d👩\u200d👧",
        "€5",
        "a\ud800b",
        "\ufffe\uffffx",
        "W" * 5000,
        "1" * 5000,
        "é" * 300 + " x",
    ],
)
def test_any_script_and_any_nonsense_is_spoken(engine: EspeakTextToSpeech, text: str) -> None:
    assert seconds(say(engine, text)) > 0.1


def test_five_thousand_characters_are_spoken_whole(engine: EspeakTextToSpeech) -> None:
    assert 200 < seconds(say(engine, "words and " * 500)) < 400


def test_text_without_a_sound_fails_with_the_reason(engine: EspeakTextToSpeech) -> None:
    with pytest.raises(InvalidInput, match=r"^\$\.text: the voice 'english-us' has no sound for any of it$"):
        say(engine, "\u200b")


def test_speech_longer_than_allowed_is_refused() -> None:
    engine = EspeakTextToSpeech()
    engine.load(None, "cpu", {"max_speech_s": 2.0})
    with pytest.raises(InvalidInput, match=r"^\$\.text: .*longer than this service allows"):
        say(engine, SENTENCE * 3)


def test_a_text_that_breaks_the_library_fails_alone(
    engine: EspeakTextToSpeech, monkeypatch: pytest.MonkeyPatch
) -> None:
    die = f"import os; os.kill(os.getpid(), {signal.SIGABRT:d})"
    monkeypatch.setattr(engine, "_command", [sys.executable, "-c", die])
    with pytest.raises(JobFailed, match="espeak-ng broke on this text"):
        say(engine)


def test_a_library_that_hangs_is_given_up(engine: EspeakTextToSpeech, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "_TIMEOUT_S", 0.05)
    monkeypatch.setattr(engine, "_command", [sys.executable, "-c", "import signal; signal.pause()"])
    with pytest.raises(JobFailed, match="not done after"):
        say(engine)


def test_a_cancelled_job_is_not_spoken(engine: EspeakTextToSpeech, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_command", ["/does/not/exist"])
    (answer,) = engine.predict([task("hi", context=FakeContext(cancel_at=0.0))])
    assert isinstance(answer, JobFailed)


# Loading


def test_an_unknown_default_voice_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"options\.default_voice: unknown voice 'x'; there are: english-us, "):
        EspeakTextToSpeech().load(None, "cpu", {"default_voice": "x"})


def test_an_unknown_option_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="default_voice"):
        EspeakTextToSpeech().load(None, "cpu", {"default_voise": "german"})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ServiceError, match="pip install espeakng-loader"):
        EspeakTextToSpeech().load(None, "cpu", {})


def test_a_library_without_its_data_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import espeakng_loader  # type: ignore[import-untyped]  # ships no types

    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: "/does/not/exist")
    with pytest.raises(ServiceError, match="does not find its data"):
        EspeakTextToSpeech().load(None, "cpu", {})


def test_a_voice_that_the_library_lacks_is_named(engine: EspeakTextToSpeech, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "VOICES", {"english-us": espeak.EspeakVoice("gmw/nowhere", "", "no one")})
    with pytest.raises(ServiceError, match="lacks one of the voices"):
        say(engine)


def test_the_sample_rate_is_the_librarys_own(engine: EspeakTextToSpeech) -> None:
    assert say(engine).sample_rate == espeak_process.SAMPLE_RATE == 22_050
