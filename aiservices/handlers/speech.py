"""What every text-to-speech engine shares: the contract, the reference clip's checks and the encoding of the answer."""

from __future__ import annotations

import abc
import hashlib
import io
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import attrs
import msgspec

from aiservices.errors import InvalidInput
from aiservices.handler import BatchHandler, Context, Handler, output_file
from aiservices.handlers import audio
from aiservices.handlers.speech_encoding import MEDIA_TYPES, AudioFormat, fitting_rate, write_audio

if TYPE_CHECKING:
    import soundfile  # type: ignore[import-untyped]  # ships no types

MAX_TEXT_CHARS = 80_000
"""An hour of speech at 22 characters a second, which is fast."""


PROMPT_FIELD = "$.audio_prompt_url"

REFERENCE_MIN_S = 3.0
"""Below this a voice encoder hears too little; Chatterbox listens to the first 6 to 10 s."""

REFERENCE_MAX_S = 60.0
REFERENCE_MAX_CHANNELS = 8
REFERENCE_RATES_HZ = (8_000, 192_000)

REFERENCE_SPOKEN_MIN_S = 1.5
"""How much of the clip has to be louder than :data:`REFERENCE_SPOKEN_LEVEL`."""

REFERENCE_SPOKEN_LEVEL = 10 ** (-45 / 20)
"""Root mean square of 20 ms, -45 dBFS: quiet speech into a laptop's microphone is above, its noise below."""


@attrs.frozen
class TextToSpeechInput:
    """What to say, and how."""

    text: Annotated[
        str, msgspec.Meta(min_length=1, max_length=MAX_TEXT_CHARS, description="What to say: plain text, no markup.")
    ]
    voice: Annotated[
        Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None,
        msgspec.Meta(
            description="Name of a voice, as english-us; a name that is unknown is answered with those there are."
        ),
    ] = None
    audio_prompt_url: Annotated[
        Annotated[str, msgspec.Meta(min_length=1)] | None,
        msgspec.Meta(
            description="Clip of the voice to speak with: 3 to 60 s of clear speech (WAV, FLAC, MP3 or Ogg) as http, "
            "https or data: URL. It decides how the voice sounds, also if a voice is named."
        ),
    ] = None
    format: Annotated[
        AudioFormat,
        msgspec.Meta(
            description="Coding of the answer's audio; opus comes in an Ogg file, pcm is 16 bit, "
            "little-endian, without a header."
        ),
    ] = "wav"
    sample_rate: Annotated[
        Literal[8_000, 16_000, 22_050, 24_000, 44_100, 48_000] | None,
        msgspec.Meta(description="Samples a second of the answer's audio; the engine's own if it is left out."),
    ] = None
    language: Annotated[
        Annotated[str, msgspec.Meta(pattern="^[a-z]{2}$")] | None,
        msgspec.Meta(description="Language of the text, as en or fr, for an engine that speaks several."),
    ] = None
    seed: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None,
        msgspec.Meta(description="Same seed and same input, same speech."),
    ] = None
    speed: Annotated[
        float,
        msgspec.Meta(ge=0.5, le=2.0, description="How fast, as a multiple of the voice's own tempo; the pitch stays."),
    ] = 1.0
    exaggeration: Annotated[
        float, msgspec.Meta(ge=0.0, le=2.0, description="How lively: 0 is flat, 0.5 is normal, above 1 is theatre.")
    ] = 0.5
    cfg_weight: Annotated[
        float, msgspec.Meta(ge=0.0, le=1.0, description="How closely to follow the text's pace and the voice's accent.")
    ] = 0.5
    temperature: Annotated[
        float, msgspec.Meta(ge=0.05, le=2.0, description="How varied: low is monotonous, high is adventurous.")
    ] = 0.8
    repetition_penalty: Annotated[
        Annotated[float, msgspec.Meta(ge=1.0, le=3.0)] | None,
        msgspec.Meta(description="How much sounds that were made before are avoided; 1 is not at all."),
    ] = None
    min_p: Annotated[
        Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None,
        msgspec.Meta(description="Sounds less likely than this share of the likeliest one are never made."),
    ] = None
    top_p: Annotated[
        Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] | None,
        msgspec.Meta(description="Only the likeliest sounds that together have this probability are made."),
    ] = None
    stream: Annotated[
        bool,
        msgspec.Meta(
            description="Put each part of the speech into the job's stream as soon as it is ready, as base64 of 16 bit "
            "little-endian mono samples."
        ),
    ] = False


@attrs.frozen
class TextToSpeechOutput:
    """The speech and what it was made with."""

    audio: Annotated[bytes, output_file("The audio file in base64; audio_url instead if it went to a bucket.")]
    media_type: Annotated[str, msgspec.Meta(description="Media type of the audio file, as audio/wav.")]
    format: Annotated[AudioFormat, msgspec.Meta(description="Coding, as asked for.")]
    sample_rate: Annotated[int, msgspec.Meta(description="Samples a second.")]
    duration_s: Annotated[float, msgspec.Meta(description="Length in seconds.")]
    voice: Annotated[str, msgspec.Meta(description="The voice that spoke; audio_prompt if a clip was given.")]
    engine: Annotated[Literal["espeak-ng", "chatterbox"], msgspec.Meta(description="What made the speech.")]
    warnings: Annotated[list[str], msgspec.Meta(description="What was not done as asked, a sentence each.")]


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


@attrs.frozen(eq=False)
class SpeechRequest:
    """One job as the model's thread gets it."""

    input: TextToSpeechInput
    reference: Reference | None


class Spoken(Protocol):
    """What an answer says of its audio; see :class:`Speech`."""

    @property
    def voice(self) -> str:
        """Name of the voice that spoke."""

    @property
    def engine(self) -> Literal["espeak-ng", "chatterbox"]:
        """What made it."""

    @property
    def format(self) -> AudioFormat:
        """How to encode it."""

    @property
    def warnings(self) -> Sequence[str]:
        """What was not done as asked."""

    @property
    def to_rate(self) -> int | None:
        """Samples a second that were asked for."""


@attrs.frozen(eq=False)
class Speech:
    """What an engine made for one request.

    Args:
        samples: mono, shape ``(frames,)``, float32 within ±1.
        sample_rate: samples a second.
        voice: name of the voice that spoke.
        engine: ``espeak-ng`` or ``chatterbox``.
        format: how to encode it.
        warnings: what was not done as asked.
        speed: tempo that is still to be applied.
        to_rate: samples a second that were asked for; None for the engine's own.
    """

    samples: audio.Samples
    sample_rate: int
    voice: str
    engine: Literal["espeak-ng", "chatterbox"]
    format: AudioFormat
    warnings: Sequence[str] = ()
    speed: float = 1.0
    to_rate: int | None = None


class SpeechContract(Handler[TextToSpeechInput, TextToSpeechOutput]):
    """The contract of text to speech, whichever way the engine works."""

    @property
    @abc.abstractmethod
    def voices(self) -> Sequence[str] | None:
        """Names of the voices; None as long as they are not known. Readable from any thread."""

    def validate(self, input: TextToSpeechInput) -> None:
        """Check text, voice and the prompt's scheme."""
        if not input.text.strip():
            raise InvalidInput("$.text", "expected words, got only white space")
        if not any(map(_sayable, input.text)):
            raise InvalidInput("$.text", "expected words, got nothing that can be said")
        if input.voice is not None:
            self.check_voice(input.voice)
        if input.audio_prompt_url and not input.audio_prompt_url.lower().startswith(("http://", "https://", "data:")):
            raise InvalidInput(PROMPT_FIELD, "expected an http, https or data URL")

    def check_voice(self, voice: str) -> None:
        """Refuse a voice that there is not.

        Raises:
            InvalidInput: naming the voices that there are.
        """
        if self.voices is not None and voice not in self.voices:
            known = ", ".join(self.voices) or "none, give audio_prompt_url"
            raise InvalidInput("$.voice", f"unknown voice {voice!r}; there are: {known}")

    async def preprocess(self, input: TextToSpeechInput, context: Context) -> SpeechRequest:
        """Fetch and check the reference clip, if there is one."""
        if input.audio_prompt_url is None:
            return SpeechRequest(input, None)
        data = await context.fetch(input.audio_prompt_url, field=PROMPT_FIELD, kind="audio")
        return SpeechRequest(input, await context.run_in_pool(read_reference, data))


class TextToSpeechHandler(SpeechContract, BatchHandler[TextToSpeechInput, TextToSpeechOutput]):
    """All of a text-to-speech service but the engine: an engine adds ``voices``, ``load`` and ``predict``."""

    def postprocess(self, result: Speech) -> TextToSpeechOutput:
        """Set the tempo and encode."""
        return encode(result)


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


def encode(speech: Speech) -> TextToSpeechOutput:
    """Apply the tempo that is left, set the sample rate and encode. CPU-heavy."""
    samples = audio.change_speed(speech.samples, speech.sample_rate, speech.speed)
    rate = fitting_rate(speech.to_rate or speech.sample_rate, speech.format)
    if rate != speech.sample_rate:
        samples = audio.resample(samples, speech.sample_rate, rate)
    return encoded([audio.limit_peak(samples)], rate, speech)


def encoded(blocks: Iterable[audio.Samples], sample_rate: int, speech: Spoken) -> TextToSpeechOutput:
    """Encode finished samples and say what they were made with. CPU-heavy.

    Args:
        blocks: mono, ``(frames,)`` each, within ±1, one after the other.
        sample_rate: of the blocks, one that the format takes.
        speech: what is known about them.
    """
    file = write_audio(blocks, sample_rate, speech.format)
    warnings = list(speech.warnings)
    if speech.to_rate not in (None, sample_rate):
        warnings.append(f"{speech.format} cannot hold {speech.to_rate} samples a second; it has {sample_rate}")
    return TextToSpeechOutput(
        audio=file.data,
        media_type=MEDIA_TYPES[speech.format],
        format=speech.format,
        sample_rate=sample_rate,
        duration_s=round(file.frames / sample_rate, 3),
        voice=speech.voice,
        engine=speech.engine,
        warnings=warnings,
    )


_BLOCK_FRAMES = 1 << 16


def _sayable(character: str) -> bool:
    """Whether it is a letter, a digit or a symbol (as € or an emoji)."""
    return unicodedata.category(character)[0] in "LNS"


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

    Not with ``file.blocks``: of a file that ends early it hands out memory that was never written.
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
