"""Clips of a voice as callers send them: whole, damaged, silent, or none at all."""

from __future__ import annotations

import importlib
import io
from typing import Any

import numpy as np
import pytest

from aiservices.errors import InvalidInput
from aiservices.handlers import audio
from aiservices.handlers.reference_clip import read_reference
from tests.handlers.speech_fakes import Samples, as_file, rms, voice_like


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
