"""The contract, the reference clip's checks, the signal work and the encoding that all engines share."""

from __future__ import annotations

import base64
import importlib
import io
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiservices.errors import InvalidInput
from aiservices.handler import BatchHandler, Task
from aiservices.handlers import audio
from aiservices.handlers.reference_clip import read_reference
from aiservices.handlers.speech import Speech, SpeechRequest, TextToSpeechHandler, encode
from aiservices.handlers.speech_contract import TextToSpeechInput, TextToSpeechOutput
from aiservices.handlers.speech_encoding import AudioFormat
from aiservices.handlers.speech_text import plain_text, split_text
from tests.handlers.speech_fakes import FakeContext, Samples, as_file, heard, voice_like

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


def rms(samples: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


# The contract


def test_every_field_has_a_description_and_every_number_its_limits() -> None:
    for contract in (TextToSpeechInput, TextToSpeechOutput):
        schema = msgspec.json.schema(contract)["$defs"][contract.__name__]["properties"]
        assert all("description" in field for field in schema.values())
    schema = msgspec.json.schema(TextToSpeechInput)["$defs"]["TextToSpeechInput"]["properties"]
    for name in ("speed", "exaggeration", "cfg_weight", "temperature"):
        assert {"minimum", "maximum", "default"} <= set(schema[name])


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ""},
        {"text": "x" * 80_001},
        {"text": "hi", "format": "aac"},
        {"text": "hi", "speed": 0.4},
        {"text": "hi", "speed": 2.1},
        {"text": "hi", "exaggeration": -0.1},
        {"text": "hi", "cfg_weight": 1.1},
        {"text": "hi", "temperature": 0.0},
        {"text": "hi", "seed": -1},
        {"text": "hi", "seed": 2**32},
        {"text": "hi", "voice": ""},
        {"text": "hi", "audio_prompt_url": ""},
        {"text": "hi", "sample_rate": 11_025},
        {"text": "hi", "language": "English"},
        {"text": "hi", "min_p": 1.1},
        {"text": "hi", "top_p": 0.0},
        {"text": "hi", "repetition_penalty": 0.9},
        {"text": 5},
    ],
)
def test_what_is_outside_its_limits_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, TextToSpeechInput)


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


def test_reading_the_contract_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "soundfile", "transformers", "chatterbox", "librosa"}
    modules = "aiservices.handlers.espeak, aiservices.handlers.chatterbox"
    program = f"import sys, {modules}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# The reference clip


@pytest.mark.parametrize(
    ("form", "coding"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("WAV", "FLOAT"),
        ("FLAC", "PCM_16"),
        ("MP3", "MPEG_LAYER_III"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
    ],
)
def test_a_clip_in_each_usual_format_is_read(form: str, coding: str) -> None:
    reference = read_reference(as_file(voice_like(150), form=form, coding=coding))
    assert len(reference.samples) / reference.sample_rate == pytest.approx(4, abs=0.1)
    assert audio.median_pitch_hz(reference.samples, reference.sample_rate) == pytest.approx(150, rel=0.01)


def test_channels_are_mixed_and_direct_current_is_taken_out() -> None:
    hum = voice_like(120)
    two: Samples = np.stack([hum, hum / 2], axis=1) + np.float32(0.25)
    samples = read_reference(as_file(two)).samples
    assert samples.mean() == pytest.approx(0, abs=1e-4)
    assert rms(samples) == pytest.approx(0.75 * rms(hum), rel=0.01)


def test_the_same_file_has_the_same_digest_and_another_has_another() -> None:
    one, other = as_file(voice_like(120)), as_file(voice_like(121))
    assert read_reference(one).digest == read_reference(one).digest != read_reference(other).digest


def quiet() -> bytes:
    return as_file(voice_like(120) / 500)


def mostly_silent() -> bytes:
    return as_file(np.concatenate([voice_like(120, seconds=1), np.zeros(64_000, dtype=np.float32)]))


def not_numbers() -> bytes:
    hum = voice_like(120)
    hum[1000] = np.nan
    return as_file(hum, coding="FLOAT")


def two_hours() -> bytes:
    """Silence that takes 180 kB."""
    soundfile: Any = importlib.import_module("soundfile")
    minute, file = np.zeros(60 * 8000, dtype=np.int16), io.BytesIO()
    with soundfile.SoundFile(file, "w", 8000, 1, format="FLAC", subtype="PCM_16") as writer:
        for _ in range(120):
            writer.write(minute)
    return file.getvalue()


HUM = as_file(voice_like(120))
FLAC = as_file(voice_like(120), form="FLAC")
MP3 = as_file(voice_like(120), form="MP3", coding="MPEG_LAYER_III")
BAD_CLIPS = {
    "empty": (b"", "not audio"),
    "a page": (b"<html>not here</html>" * 50, "not audio"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(500), "not audio"),
    "zeros": (bytes(2000), "not audio"),
    "header only": (HUM[:44], "the clip has 0.00 s"),
    "cut off wav": (HUM[:-20_000], "cut off"),
    "cut off flac": (FLAC[: len(FLAC) // 2], "cut off"),
    "cut off mp3": (MP3[: len(MP3) // 2], "cut off"),
    "cut off ogg": (as_file(voice_like(120), form="OGG", coding="VORBIS")[:4500], "clip has|cut off|not audio"),
    "50 ms": (as_file(voice_like(120, seconds=0.05)), r"expected 3 to 60 s of speech, the clip has 0\.05 s"),
    "too long": (as_file(np.zeros(61 * 8000, dtype=np.float32), sample_rate=8000, form="FLAC"), "has 61.00 s"),
    "two hours": (two_hours(), r"expected 3 to 60 s of speech, the clip has 7200\.00 s"),
    "a chunk of 2 GB": (HUM[:12] + b"LIST\xf0\xff\xff\x7f" + HUM[12:], "not audio"),
    "a format of 2 GB": (HUM[:16] + b"\xff\xff\xff\x7f" + HUM[20:], "not audio"),
    "2 ** 36 frames": (FLAC[:21] + bytes([FLAC[21] | 15]) + b"\xff" * 4 + FLAC[26:], r"the clip has 4294967\.\d\d s"),
    "24 channels": (as_file(np.zeros((64_000, 24), dtype=np.float32)), "at most 8 channels, got 24"),
    "silence": (as_file(np.zeros(64_000, dtype=np.float32)), r"silent or too quiet: 0\.0 s"),
    "direct current": (as_file(np.full(64_000, 0.5, dtype=np.float32)), "silent or too quiet"),
    "quiet": (quiet(), "silent or too quiet"),
    "mostly silent": (mostly_silent(), r"silent or too quiet: 1\.0 s"),
    "not numbers": (not_numbers(), "not numbers"),
    "too many channels": (as_file(np.zeros((64_000, 9), dtype=np.float32)), "at most 8 channels, got 9"),
    "too high a rate": (as_file(voice_like(120), sample_rate=384_000), "8000 to 192000 samples a second, got 384000"),
    "too low a rate": (as_file(voice_like(120), sample_rate=4000), "8000 to 192000 samples a second, got 4000"),
}


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_a_clip_no_voice_can_be_taken_from_is_refused_with_the_reason(name: str) -> None:
    clip, reason = BAD_CLIPS[name]
    with pytest.raises(InvalidInput, match=rf"^\$\.audio_prompt_url: .*({reason})"):
        read_reference(clip)


def test_a_clip_of_192_khz_is_read() -> None:
    clip = read_reference(as_file(voice_like(120, sample_rate=192_000), sample_rate=192_000))
    assert (len(clip.samples), clip.sample_rate) == (4 * 192_000, 192_000)


def test_a_wav_from_a_pipe_with_no_length_in_its_header_is_read() -> None:
    streamed = HUM[:4] + b"\xff\xff\xff\xff" + HUM[8:40] + b"\xff\xff\xff\xff" + HUM[44:]
    assert len(read_reference(streamed).samples) == 64_000


# The signal work


@pytest.mark.parametrize("pitch_hz", [75, 110, 165, 220, 330])
@pytest.mark.parametrize("sample_rate", [8000, 22_050, 48_000])
def test_the_pitch_of_a_hum_is_found(pitch_hz: int, sample_rate: int) -> None:
    hum = voice_like(pitch_hz, seconds=1, sample_rate=sample_rate)
    assert audio.median_pitch_hz(hum, sample_rate) == pytest.approx(pitch_hz, rel=0.01)


def test_noise_silence_and_a_click_have_no_pitch() -> None:
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    for samples in (noise, np.zeros(16_000, dtype=np.float32), np.ones(10, dtype=np.float32)):
        assert audio.median_pitch_hz(samples, 16_000) is None


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.25, 2.0])
def test_another_tempo_keeps_pitch_and_level(speed: float) -> None:
    hum = voice_like(140, seconds=2)
    changed = audio.change_speed(hum, 16_000, speed)
    assert len(changed) == round(len(hum) / speed)
    assert audio.median_pitch_hz(changed, 16_000) == pytest.approx(140, rel=0.01)
    assert rms(changed) == pytest.approx(rms(hum), rel=0.05)


@pytest.mark.parametrize("frames", [0, 1, 100, 800])
def test_a_very_short_sound_survives_another_tempo(frames: int) -> None:
    assert len(audio.change_speed(voice_like(120)[:frames], 16_000, 2)) <= frames


@pytest.mark.parametrize(("sample_rate", "to_rate"), [(22_050, 24_000), (16_000, 48_000), (48_000, 16_000)])
def test_another_sample_rate_keeps_the_sound(sample_rate: int, to_rate: int) -> None:
    changed = audio.resample(voice_like(200, sample_rate=sample_rate), sample_rate, to_rate)
    exact = voice_like(200, sample_rate=to_rate)
    middle = slice(to_rate // 10, -to_rate // 10)  # at the ends the sound begins and stops at once
    assert len(changed) == len(exact)
    assert np.abs(changed - exact)[middle].max() < 0.001


def test_speech_is_brought_to_one_level_and_never_clips() -> None:
    for loudness in (0.001, 0.1, 2.0):
        paused = np.concatenate([np.zeros(16_000, dtype=np.float32), loudness * voice_like(120)])
        levelled = audio.set_level(paused, 16_000)
        assert rms(levelled[16_000:]) == pytest.approx(audio.SPEECH_LEVEL, rel=0.02)
    click = np.zeros(16_000, dtype=np.float32)
    click[::320] = 0.1
    assert np.abs(audio.set_level(click, 16_000)).max() <= audio.PEAK + 1e-6
    assert not audio.set_level(np.zeros(16_000, dtype=np.float32), 16_000).any()


# The encoding


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


# The text


def test_short_text_stays_whole_with_single_spaces() -> None:
    assert split_text("  One two.\n\nThree,  four. ", 300) == ["One two. Three, four."]
    assert split_text(" \n ", 300) == []


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One two. Three four! Five six?", ["One two.", "Three four!", "Five six?"]),
        ('He said "no." She said yes.', ['He said "no."', "She said yes."]),
        ("a b. c d. e f. g h i j k l", ["a b. c d. e f.", "g h i j k l"]),
        ("one two, three four, five six", ["one two,", "three four,", "five six"]),
        ("one two three four five six", ["one two three", "four five six"]),
        (
            "\u4e00\u4e8c\u3002\u4e09\u56db\u4e94\uff01" + "\u516d" * 12,
            ["\u4e00\u4e8c\u3002\u4e09\u56db\u4e94\uff01", "\u516d" * 12],
        ),
        ("x" * 35, ["x" * 15, "x" * 15, "x" * 5]),
        ("version 1.5.2 of a thing", ["version 1.5.2", "of a thing"]),
    ],
)
def test_long_text_is_split_at_the_best_place(text: str, pieces: list[str]) -> None:
    assert split_text(text, 15) == pieces


@settings(deadline=None)
@given(st.text(alphabet="ab .,!?\n\u2026", max_size=400), st.integers(1, 60))
def test_a_split_text_loses_nothing_and_has_no_piece_that_is_too_long(text: str, max_chars: int) -> None:
    pieces = split_text(text, max_chars)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= max_chars for piece in pieces)


def test_what_cannot_be_said_is_taken_out() -> None:
    assert plain_text("A\x00b\u200bc \U0001f600 e\u0301\n\nd\ud800") == "A bc   \u00e9\n\nd "
    assert (
        plain_text("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645")
        == "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    )


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
