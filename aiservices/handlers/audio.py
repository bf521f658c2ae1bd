"""Signal work that every speech service needs, in plain numpy: level, tempo, sample rate, pitch.

Arrays are mono, float32, shape ``(frames,)``, full scale at 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]
    Frames = NDArray[Any]

PEAK = 10 ** (-1 / 20)
"""No sample goes above -1 dBFS: lossy coders overshoot by about that much."""

SPEECH_LEVEL = 10 ** (-20 / 20)
"""Root mean square of the speech itself, pauses left out, where it is set: -20 dBFS."""

PITCH_RANGE_HZ = (60.0, 420.0)
"""Where a period is looked for; the medians of men, women and children, 100 to 300 Hz, lie well inside."""

_LEVEL_FRAME_S = 0.02
_SPEECH_BELOW_PEAK = 10 ** (-30 / 20)
_PITCH_RATE = 8000
_PITCH_FRAME_S = 0.04
_PITCH_HOP_S = 0.01
_VOICED = 0.75
_SINC_ZEROS = 16


def frame_levels(samples: Samples, sample_rate: int) -> Samples:
    """Root mean square of every 20 ms, shape ``(frames of 20 ms,)``; what is left at the end is dropped."""
    import numpy as np

    length = max(1, int(sample_rate * _LEVEL_FRAME_S))
    whole = len(samples) // length * length
    frames = samples[:whole].reshape(-1, length)
    levels: Samples = np.sqrt(np.einsum("ij,ij->i", frames, frames) / np.float32(length))  # no copy of the whole
    return levels


def set_level(samples: Samples, sample_rate: int) -> Samples:
    """Set the speech to :data:`SPEECH_LEVEL`, or as near to it as :data:`PEAK` allows."""
    import numpy as np

    levels = frame_levels(samples, sample_rate)
    if not levels.size or not levels.max() > 0:
        return samples
    spoken = levels[levels > levels.max() * _SPEECH_BELOW_PEAK]
    gain = SPEECH_LEVEL / float(np.sqrt(np.mean(np.square(spoken))))
    return samples * np.float32(min(gain, PEAK / peak_of(samples)))


def peak_of(samples: Samples) -> float:
    """Largest distance from zero; no copy is made."""
    return max(float(samples.max(initial=0.0)), -float(samples.min(initial=0.0)))


def peak_gain(peak: float) -> float:
    """What sound of that peak is to be multiplied by, so that nothing is above :data:`PEAK`; quiet sound stays."""
    return PEAK / peak if peak > PEAK else 1.0


def limit_peak(samples: Samples) -> Samples:
    """Turn the whole down so that nothing is above :data:`PEAK`; quiet sound stays as it is."""
    import numpy as np

    gain = peak_gain(peak_of(samples))
    return samples if gain == 1 else samples * np.float32(gain)


def resample(samples: Samples, sample_rate: int, to_rate: int) -> Samples:
    """Change the sample rate of the whole, as :func:`resample_pieces` does."""
    import numpy as np

    return np.concatenate([samples[:0], *resample_pieces(samples, sample_rate, to_rate)])


def resample_pieces(samples: Samples, sample_rate: int, to_rate: int) -> Iterator[Samples]:
    """Change the sample rate with a windowed sinc (16 zero crossings a side, Kaiser), a second at a time.

    For rates in a small ratio, as 22 050 to 24 000 Hz: the filters of all phases are held at once. In pieces, because
    the windows of 22 050 to 44 100 Hz are 35 times as large as the samples.
    Source: J. O. Smith, Digital Audio Resampling Home Page, https://ccrma.stanford.edu/~jos/resample/.
    """
    import numpy as np

    divisor = math.gcd(sample_rate, to_rate)
    up, down = to_rate // divisor, sample_rate // divisor
    cutoff = 0.95 * min(1.0, up / down)
    reach = math.ceil(_SINC_ZEROS / cutoff)
    frames, rounds = math.ceil(len(samples) * up / down), math.ceil(len(samples) / down)
    offset = np.arange(-reach, down + reach)[:, None] - np.arange(up) * down / up
    taper = np.i0(9 * np.sqrt(np.maximum(0, 1 - (offset / reach) ** 2))) / np.i0(9)
    filters = np.where(np.abs(offset) < reach, cutoff * np.sinc(cutoff * offset) * taper, 0).astype(np.float32)
    for first in range(0, rounds, divisor):
        begin, end = first * down - reach, min(first + divisor, rounds) * down + reach
        heard = samples[max(0, begin) : end]
        padded = np.pad(heard, (max(0, -begin), max(0, end - len(samples))))
        windows = np.lib.stride_tricks.sliding_window_view(padded, down + 2 * reach)[::down]
        yield (windows @ filters).reshape(-1)[: frames - first * up]


def change_speed(samples: Samples, sample_rate: int, speed: float) -> Samples:
    """Make speech ``speed`` times as fast at the same pitch, by waveform-similarity overlap-add.

    Source: Verhelst and Roelands, "An overlap-add technique based on waveform similarity (WSOLA) for high quality
    time-scale modification of speech", ICASSP 1993.
    """
    import numpy as np

    half, search = int(sample_rate * 0.012), int(sample_rate * 0.008)
    if speed == 1 or len(samples) < 4 * half:
        return samples
    frames = round(len(samples) / speed)
    window = np.hanning(2 * half + 1)[:-1].astype(np.float32)
    padded = np.pad(samples, (half + search, 2 * half + 2 * search))
    out = np.zeros(frames + 3 * half, dtype=np.float32)
    start = search
    for at in range(0, frames + half, half):
        if at:
            ideal = min(int(at * speed), len(samples))
            around = padded[ideal : ideal + 2 * search + 2 * half]
            start = ideal + _most_alike(around, padded[start + half : start + 3 * half])
        out[at : at + 2 * half] += padded[start : start + 2 * half] * window
    return out[half : half + frames]


def _most_alike(around: Samples, follows: Samples) -> int:
    """Where in ``around`` the waveform continues most like ``follows`` (normalised cross-correlation)."""
    import numpy as np

    products = np.correlate(around, follows, mode="valid")
    energy = np.correlate(np.square(around), np.ones(len(follows), dtype=np.float32), mode="valid")
    return int(np.argmax(products / np.sqrt(np.maximum(energy, 1e-9))))


def median_pitch_hz(samples: Samples, sample_rate: int) -> float | None:
    """Estimate the median fundamental frequency of speech, in Hz; None where nothing is clearly voiced.

    Normalised autocorrelation of 40 ms frames every 10 ms; the first strong peak wins, so that two periods are not
    taken for one. Source: Boersma, "Accurate short-term analysis of the fundamental frequency and the
    harmonics-to-noise ratio of a sampled sound", IFA Proceedings 17, 1993.
    """
    import numpy as np

    together = max(1, sample_rate // _PITCH_RATE)
    sound = samples[: len(samples) // together * together].reshape(-1, together).mean(axis=1)
    rate = sample_rate / together
    length, hop = int(rate * _PITCH_FRAME_S), int(rate * _PITCH_HOP_S)
    if len(sound) < length:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(sound, length)[::hop]
    level = np.sqrt(np.mean(np.square(frames), axis=1))
    frames = frames[level > 0.2 * np.quantile(level, 0.95)]
    pitches = _pitches_hz(frames - frames.mean(axis=1, keepdims=True), rate)
    return float(np.median(pitches)) if len(pitches) >= 10 else None


def _pitches_hz(frames: Frames, rate: float) -> Frames:
    """Fundamental frequency of those frames, shape ``(frames, length)``, that are voiced."""
    import numpy as np

    length = frames.shape[1]
    window = np.hanning(length)
    likeness = _autocorrelation(frames * window) / _autocorrelation(window[None])
    likeness = likeness / np.maximum(likeness[:, :1], 1e-12)
    shortest, longest = (int(rate / hz) for hz in reversed(PITCH_RANGE_HZ))
    before, here, after = (likeness[:, shortest + shift : longest + shift + 1] for shift in (-1, 0, 1))
    peaks = np.where((here >= before) & (here > after), here, 0)
    best = peaks.max(axis=1, initial=0)
    lag = np.argmax(peaks >= 0.9 * best[:, None], axis=1)
    rows = np.flatnonzero(best > _VOICED)
    y0, y1, y2 = (part[rows, lag[rows]] for part in (before, here, after))
    shift = 0.5 * (y0 - y2) / np.minimum(y0 - 2 * y1 + y2, -1e-12)
    pitches: Frames = rate / (lag[rows] + shortest + shift)
    return pitches


def _autocorrelation(frames: Frames) -> Frames:
    import numpy as np

    length = frames.shape[1]
    spectrum = np.fft.rfft(frames, 2 * length)
    power: Frames = np.fft.irfft(np.abs(spectrum) ** 2)[:, :length]
    return power
