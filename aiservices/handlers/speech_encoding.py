"""Write samples as a file in the coding that was asked for, block by block: an hour is never held twice."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

if TYPE_CHECKING:
    from aiservices.handlers.audio import Samples

AudioFormat: TypeAlias = Literal["wav", "flac", "mp3", "ogg", "opus", "pcm"]
"""Coding of an answer's audio."""

OPUS_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)
"""RFC 6716, section 2."""

MEDIA_TYPES: dict[AudioFormat, str] = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "opus": "audio/ogg; codecs=opus",  # RFC 7845, section 9
    "pcm": "audio/pcm",
}
"""What each coding is called in HTTP."""

_CODINGS: dict[AudioFormat, tuple[str, str]] = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "pcm": ("RAW", "PCM_16"),
}


@attrs.frozen(eq=False)
class AudioFile:
    """An encoded file.

    Args:
        data: the file.
        frames: how many samples it holds.
    """

    data: bytes
    frames: int


def fitting_rate(sample_rate: int, coding: AudioFormat) -> int:
    """Return the sample rate to encode at: Opus has only five; others become the next higher of these."""
    if coding != "opus" or sample_rate in OPUS_RATES_HZ:
        return sample_rate
    return min((rate for rate in OPUS_RATES_HZ if rate > sample_rate), default=OPUS_RATES_HZ[-1])


def write_audio(blocks: Iterable[Samples], sample_rate: int, coding: AudioFormat) -> AudioFile:
    """Encode mono samples. CPU-heavy.

    Args:
        blocks: what to write, one after the other, ``(frames,)`` each, within ±1.
        sample_rate: of the blocks; one that :func:`fitting_rate` leaves as it is.
        coding: of the file; ``pcm`` is 16 bit, little-endian, without a header.
    """
    import soundfile  # type: ignore[import-untyped]  # ships no types

    container, subtype = _CODINGS[coding]
    target, frames = io.BytesIO(), 0
    endian = "LITTLE" if container == "RAW" else None
    with soundfile.SoundFile(target, "w", sample_rate, 1, subtype, endian, container) as file:
        for block in blocks:
            frames += len(block)
            for start in range(0, len(block), sample_rate):  # the Vorbis writer keeps a whole write on its stack
                file.write(block[start : start + sample_rate])
    return AudioFile(target.getvalue(), frames)
