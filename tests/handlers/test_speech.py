"""What every text-to-speech service does before and after its engine speaks."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from aiservices.errors import InvalidInput
from aiservices.handler import BatchHandler, Task
from aiservices.handlers import audio
from aiservices.handlers.speech import Speech, SpeechRequest, TextToSpeechHandler, encode
from aiservices.handlers.speech_contract import TextToSpeechInput, TextToSpeechOutput
from aiservices.handlers.speech_encoding import AudioFormat
from tests.handlers.speech_fakes import FakeContext, Samples, as_file, heard, rms, voice_like

FORMATS: tuple[AudioFormat, ...] = ("wav", "flac", "mp3", "ogg", "opus", "pcm")


MEDIA_TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "opus": "audio/ogg; codecs=opus",
    "pcm": "audio/pcm",
}


class Humming(TextToSpeechHandler, BatchHandler[TextToSpeechInput, TextToSpeechOutput]):
    """An engine that hums; its voices are known once it is loaded."""

    def __init__(self, voices: Sequence[str] | None = ("low", "high")) -> None:
        self._voices = voices

    @property
    def voices(self) -> Sequence[str] | None:
        return self._voices

    def predict(self, tasks: Sequence[Task[SpeechRequest]]) -> Sequence[Speech | Exception]:
        return [speech(voice_like(120), 16_000) for _ in tasks]


def speech(samples: Samples, sample_rate: int, coding: AudioFormat = "wav") -> Speech:
    return Speech([samples], sample_rate, "low", "espeak-ng", coding, ["careful"])


@pytest.mark.parametrize("text", [" ", "\n\t\u2003", "...", "?!", "\u200b\u202e", "\x01\x02", "\u0301"])
def test_text_without_anything_to_say_is_refused_before_acceptance(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^\$\.text: expected words"):
        Humming().validate(TextToSpeechInput(text=text))


@pytest.mark.parametrize("text", ["hi", "مرحبا", "日本", "5", "€", "😀", "<b>"])
def test_text_in_any_script_is_accepted(text: str) -> None:
    Humming().validate(TextToSpeechInput(text=text))


def test_an_unknown_voice_is_refused_with_the_voices_that_there_are() -> None:
    with pytest.raises(InvalidInput, match=r"^\$\.voice: unknown voice 'x'; there are: low, high$"):
        Humming().validate(TextToSpeechInput(text="hi", voice="x"))


def test_any_voice_is_accepted_as_long_as_the_voices_are_not_known() -> None:
    Humming(None).validate(TextToSpeechInput(text="hi", voice="x"))


@pytest.mark.parametrize("url", ["ftp://host/a.wav", "file:///etc/passwd", "/tmp/a.wav", "a.wav"])
def test_a_prompt_of_another_scheme_is_refused_before_acceptance(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"^\$\.audio_prompt_url: expected an http, https or data URL$"):
        Humming().validate(TextToSpeechInput(text="hi", audio_prompt_url=url))


async def test_the_prompt_is_fetched_as_audio_and_decoded() -> None:
    context = FakeContext(as_file(voice_like(120)))
    request = await Humming().preprocess(TextToSpeechInput(text="hi", audio_prompt_url="https://host/a"), context)
    assert context.fetched == [("https://host/a", "$.audio_prompt_url", "audio")]
    assert request.reference is not None
    assert request.reference.samples.shape == (64_000,)


async def test_nothing_is_fetched_without_a_prompt() -> None:
    context = FakeContext()
    request = await Humming().preprocess(TextToSpeechInput(text="hi"), context)
    assert request.reference is None
    assert context.fetched == []


@pytest.mark.parametrize("coding", FORMATS)
@pytest.mark.parametrize("sample_rate", [22_050, 24_000])
def test_every_format_decodes_to_what_went_in(coding: AudioFormat, sample_rate: int) -> None:
    hum = voice_like(180, seconds=2, sample_rate=sample_rate)
    output = encode(speech(hum, sample_rate, coding))
    samples, decoded_rate = heard(output)
    assert (output.format, output.media_type, output.sample_rate) == (coding, MEDIA_TYPES[coding], decoded_rate)
    assert len(samples) / decoded_rate == pytest.approx(2, abs=0.05) == output.duration_s
    assert rms(samples) == pytest.approx(rms(hum), rel=0.05)
    assert audio.median_pitch_hz(samples, decoded_rate) == pytest.approx(180, rel=0.01)
    assert (output.voice, output.engine, output.warnings) == ("low", "espeak-ng", ["careful"])


def test_the_file_is_bytes_that_json_shows_as_base64() -> None:
    output = encode(speech(voice_like(180), 16_000, "flac"))
    assert output.audio[:4] == b"fLaC"
    shown = msgspec.json.decode(msgspec.json.encode(output))
    assert shown["audio"] == base64.b64encode(output.audio).decode()
    schema = msgspec.json.schema(TextToSpeechOutput)["$defs"]["TextToSpeechOutput"]["properties"]["audio"]
    assert (schema["type"], schema["contentEncoding"]) == ("string", "base64")


def test_loud_sound_is_turned_down_instead_of_clipped() -> None:
    samples, _ = heard(encode(speech(3 * voice_like(180), 16_000)))
    assert np.abs(samples).max() == pytest.approx(audio.PEAK, abs=0.001)


def test_five_minutes_do_not_overrun_the_stack_of_the_vorbis_writer() -> None:
    hum = np.tile(voice_like(180, seconds=1), 300)
    assert encode(speech(hum, 16_000, "ogg")).duration_s == 300


@pytest.mark.parametrize(("coding", "wanted", "given"), [("wav", 8000, 8000), ("opus", 44_100, 48_000)])
def test_the_sample_rate_is_the_one_asked_for_or_the_next_that_the_coding_has(
    coding: AudioFormat, wanted: int, given: int
) -> None:
    hum = voice_like(180, seconds=1)
    output = encode(Speech([hum], 16_000, "low", "espeak-ng", coding, to_rate=wanted))
    samples, sample_rate = heard(output)
    assert (output.sample_rate, sample_rate) == (given, given)
    assert audio.median_pitch_hz(samples, sample_rate) == pytest.approx(180, rel=0.01)
    said = [f"opus cannot hold {wanted} samples a second; it has {given}"]
    assert output.warnings == ([] if given == wanted else said)
