"""Finish the sound of a piece: edges, tempo, loudness, watermark, sample rate. In a pool, never on the model's thread.

Arrays are mono, float32, ``(frames,)``, full scale at 1.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import attrs

from aiservices.handlers import audio

if TYPE_CHECKING:
    from aiservices.handlers.audio import Samples

EDGE_S = 0.04
"""Quiet that is left before and after the speech of a piece."""

FADE_S = 0.005
"""Each piece begins and ends in silence over this time, so that it joins a pause without a click."""

_QUIET = 10 ** (-40 / 20)  # beside the loudest 20 ms: below is breath and hiss


@attrs.frozen(eq=False)
class Finish:
    """What is done to every piece of a job.

    Args:
        sample_rate: of the pieces as they come.
        to_rate: as they are wanted.
        speed: tempo; the pitch stays.
        lufs: loudness; None leaves it.
        watermarker: of the library; None puts no mark in.
    """

    sample_rate: int
    to_rate: int
    speed: float
    lufs: float | None
    watermarker: Any | None

    def apply(self, samples: Samples, pause_s: float) -> Samples:
        """Finish a piece and put the pause behind it. CPU-heavy."""
        import numpy as np

        sound = audio.change_speed(_trim_edges(samples, self.sample_rate), self.sample_rate, self.speed)
        if self.lufs is not None:
            sound = set_loudness(sound, self.sample_rate, self.lufs)
        sound = self._marked(audio.limit_peak(sound))
        if self.to_rate != self.sample_rate:
            sound = audio.resample(sound, self.sample_rate, self.to_rate)
        sound = audio.limit_peak(_fade_edges(sound, self.to_rate))
        pause = np.zeros(round(pause_s * self.to_rate), dtype=np.float32)
        return np.concatenate([sound, pause])

    def _marked(self, samples: Samples) -> Samples:
        import numpy as np
        import torch

        if self.watermarker is None:
            return samples
        with torch.inference_mode():
            marked = self.watermarker.apply_watermark(samples, sample_rate=self.sample_rate)
        return np.asarray(marked, dtype=np.float32)


def _trim_edges(samples: Samples, sample_rate: int) -> Samples:
    """Cut what is 40 dB below the loudest part off both ends, but for :data:`EDGE_S`."""
    import numpy as np

    levels = audio.frame_levels(samples, sample_rate)
    if not levels.size or not levels.max() > 0:
        return samples
    heard = np.flatnonzero(levels > levels.max() * _QUIET)
    frame = len(samples) // len(levels) if len(levels) == 1 else int(sample_rate * 0.02)
    edge = int(EDGE_S * sample_rate)
    first, last = int(heard[0]) * frame, (int(heard[-1]) + 1) * frame
    # The frames do not cover the last few samples; they go with the last frame.
    end = len(samples) if heard[-1] == len(levels) - 1 else min(len(samples), last + edge)
    return samples[max(0, first - edge) : end]


def _fade_edges(samples: Samples, sample_rate: int) -> Samples:
    """Let a piece begin and end in silence, along a raised cosine."""
    import numpy as np

    length = min(int(FADE_S * sample_rate), len(samples) // 2)
    if length == 0:
        return samples
    rise = (0.5 - 0.5 * np.cos(np.pi * np.arange(length) / length)).astype(np.float32)
    out = samples.copy()
    out[:length] *= rise
    out[-length:] *= rise[::-1]
    return out


def set_loudness(samples: Samples, sample_rate: int, lufs: float) -> Samples:
    """Set a sound to a loudness (ITU-R BS.1770-4); one too short to be measured, to a like level.

    Below 0.4 s, a block of that standard, the level of the loud parts stands in for the loudness.
    """
    import numpy as np

    pyloudnorm: Any = importlib.import_module("pyloudnorm")  # untyped, and only in the chatterbox extra

    if len(samples) < 0.4 * sample_rate:
        levels = audio.frame_levels(samples, sample_rate)
        level = float(levels.max(initial=0.0))
        now = 20 * math.log10(level) if level > 0 else -math.inf
    else:
        now = float(pyloudnorm.Meter(sample_rate).integrated_loudness(samples))
    if not math.isfinite(now):
        return samples
    return samples * np.float32(10 ** ((lufs - now) / 20))
