"""Read the clip of a voice that a caller sends, and check that a voice can be taken from it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from aiservices.errors import InvalidInput
from aiservices.handlers import audio

if TYPE_CHECKING:
    import soundfile  # type: ignore[import-untyped]  # ships no types

PROMPT_FIELD = "$.audio_prompt_url"
"""JSON path of the input field that names the clip."""

REFERENCE_MIN_S = 3.0
"""Below this a voice encoder hears too little; Chatterbox listens to the first 6 to 10 s."""

REFERENCE_MAX_S = 60.0
"""A longer clip says little more of a voice and takes more memory to decode."""

REFERENCE_MAX_CHANNELS = 8
"""What a surround recording has (7.1); all are decoded at once, a block at a time."""

REFERENCE_RATES_HZ = (8_000, 192_000)
"""Lowest and highest sample rate in Hz: a telephone's, and the highest that is usual."""

REFERENCE_SPOKEN_MIN_S = 1.5
"""How much of the clip has to be louder than :data:`REFERENCE_SPOKEN_LEVEL`."""

REFERENCE_SPOKEN_LEVEL = 10 ** (-45 / 20)
"""Root mean square of 20 ms, -45 dBFS: quiet speech into a laptop's microphone is above, its noise below."""

_BLOCK_FRAMES = 1 << 16


@attrs.frozen(eq=False)
class Reference:
    """A checked clip of a voice.

    Args:
        samples: mono, shape ``(frames,)``, float32 within ±1.
        sample_rate: samples a second, as in the file.
        digest: SHA-256 of the file, in hex.
    """

    samples: audio.Samples
    sample_rate: int
    digest: str


def decode_in_child(data: bytes, *, field: str = PROMPT_FIELD) -> tuple[dict[str, Any], bytes]:
    """:func:`read_reference` for ``context.run_in_child``: the sample rate, and float32 samples."""
    reference = read_reference(data)
    return {"sample_rate": reference.sample_rate}, reference.samples.tobytes()


def from_child(sound: Mapping[str, Any], samples: bytes | bytearray, data: bytes) -> Reference:
    """Make a reference of what :func:`decode_in_child` gave, believing none of it.

    Args:
        sound: what it said of the samples.
        samples: float32, mono.
        data: the caller's file.

    Raises:
        InvalidInput: rate, length or values are out of bounds.
    """
    import numpy as np

    rate = sound.get("sample_rate")
    low, high = REFERENCE_RATES_HZ
    if not isinstance(rate, int) or not low <= rate <= high or len(samples) % 4:
        raise InvalidInput(PROMPT_FIELD, "could not be decoded")
    mono = np.frombuffer(samples, dtype=np.float32)
    if not len(mono) <= rate * REFERENCE_MAX_S or not np.isfinite(mono).all():
        raise InvalidInput(PROMPT_FIELD, "could not be decoded")
    return Reference(mono, rate, hashlib.sha256(data).hexdigest())


def read_reference(data: bytes) -> Reference:
    """Decode a reference clip and check that a voice can be taken from it. CPU-heavy.

    What the header says is checked before anything is decoded, so a small file cannot fill the memory.

    Raises:
        InvalidInput: naming ``$.audio_prompt_url`` and what is wrong with the clip.
    """
    import soundfile

    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.SoundFileError:
        raise InvalidInput(PROMPT_FIELD, "not audio that can be read; send WAV, FLAC, MP3 or Ogg") from None
    with file:
        _check_header(file)
        if _riff_is_cut_off(data):
            raise InvalidInput(PROMPT_FIELD, "the audio file is cut off")
        samples = _read_mono(file)
        sample_rate = file.samplerate
    return Reference(_checked_sound(samples, sample_rate), sample_rate, hashlib.sha256(data).hexdigest())


def _check_header(file: soundfile.SoundFile) -> None:
    low, high = REFERENCE_RATES_HZ
    if not low <= file.samplerate <= high:
        raise InvalidInput(PROMPT_FIELD, f"expected {low} to {high} samples a second, got {file.samplerate}")
    if file.channels > REFERENCE_MAX_CHANNELS:
        raise InvalidInput(PROMPT_FIELD, f"expected at most {REFERENCE_MAX_CHANNELS} channels, got {file.channels}")
    duration_s = file.frames / file.samplerate
    if not REFERENCE_MIN_S <= duration_s <= REFERENCE_MAX_S:
        bounds = f"{REFERENCE_MIN_S:g} to {REFERENCE_MAX_S:g} s"
        raise InvalidInput(PROMPT_FIELD, f"expected {bounds} of speech, the clip has {duration_s:.2f} s")


def _riff_is_cut_off(data: bytes) -> bool:
    """Whether a WAV file is shorter than it says; libsndfile reads what there is without a word."""
    declared = int.from_bytes(data[4:8], "little")
    unknown = declared == 0 or declared >= 0x7FFF_0000  # what programs write that do not know the length yet
    return data[:4] == b"RIFF" and not unknown and declared + 8 > len(data) + 1  # the last pad byte is often left out


def _read_mono(file: soundfile.SoundFile) -> audio.Samples:
    """Decode block by block, so that many channels are never in memory together.

    Not with ``file.blocks``: of a file that ends early it returns memory that was never written.
    """
    import numpy as np
    import soundfile

    blocks = [np.zeros(0, dtype=np.float32)]
    try:
        while len(block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
            blocks.append(block.mean(axis=1))
    except soundfile.SoundFileError:
        raise InvalidInput(PROMPT_FIELD, "the audio file is damaged or cut off") from None
    samples = np.concatenate(blocks)
    if len(samples) < 0.99 * file.frames:
        raise InvalidInput(PROMPT_FIELD, "the audio file is cut off")
    return samples


def _checked_sound(samples: audio.Samples, sample_rate: int) -> audio.Samples:
    """Take out the direct current, refuse what is silent, return it within ±1."""
    import numpy as np

    if not np.isfinite(samples).all():
        raise InvalidInput(PROMPT_FIELD, "the audio holds samples that are not numbers")
    samples = samples / np.float32(max(1.0, float(np.abs(samples).max())))
    samples = samples - samples.mean()
    spoken_s = (
        float(np.mean(audio.frame_levels(samples, sample_rate) > REFERENCE_SPOKEN_LEVEL)) * len(samples) / sample_rate
    )
    if spoken_s < REFERENCE_SPOKEN_MIN_S:
        needed = f"{REFERENCE_SPOKEN_MIN_S:g} s are needed"
        raise InvalidInput(PROMPT_FIELD, f"silent or too quiet: {spoken_s:.1f} s are loud enough for speech, {needed}")
    return samples
