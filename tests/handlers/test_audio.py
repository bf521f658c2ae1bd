"""Pitch, tempo, sample rate and level of hums whose right values are known."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from aiservices.handlers import audio
from tests.handlers.speech_fakes import rms, voice_like


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


def test_another_sample_rate_costs_a_second_of_memory_not_the_whole() -> None:
    minutes = np.tile(voice_like(200, sample_rate=22_050), 100)
    tracemalloc.start()
    try:
        made = sum(len(piece) for piece in audio.resample_pieces(minutes, 22_050, 44_100))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made == 2 * len(minutes)
    assert peak_bytes < 8 * 1024 * 1024  # the windows of one second are 3 MB; those of all would be 35 times the sound


def test_speech_is_brought_to_one_level_and_never_clips() -> None:
    for loudness in (0.001, 0.1, 2.0):
        paused = np.concatenate([np.zeros(16_000, dtype=np.float32), loudness * voice_like(120)])
        levelled = audio.set_level(paused, 16_000)
        assert rms(levelled[16_000:]) == pytest.approx(audio.SPEECH_LEVEL, rel=0.02)
    click = np.zeros(16_000, dtype=np.float32)
    click[::320] = 0.1
    assert np.abs(audio.set_level(click, 16_000)).max() <= audio.PEAK + 1e-6
    assert not audio.set_level(np.zeros(16_000, dtype=np.float32), 16_000).any()
