"""What every text-to-speech service shares: the checks before a job is accepted, the clip, the encoded answer."""

from __future__ import annotations

import abc
import unicodedata
from collections.abc import Iterator, Sequence

import attrs

from aiservices.errors import InvalidInput
from aiservices.handler import Context, Handler
from aiservices.handlers import audio
from aiservices.handlers.reference_clip import PROMPT_FIELD, Reference, decode_in_child, from_child
from aiservices.handlers.speech_contract import EngineName, TextToSpeechInput, TextToSpeechOutput
from aiservices.handlers.speech_encoding import MEDIA_TYPES, AudioFormat, fitting_rate, write_audio


@attrs.frozen(eq=False)
class SpeechRequest:
    """One job as the model's thread gets it.

    Attributes:
        reference: the clip whose voice is to speak; None without one.
    """

    input: TextToSpeechInput
    reference: Reference | None


@attrs.frozen(eq=False)
class Speech:
    """What an engine made for one request.

    Attributes:
        blocks: the sound, one after the other: mono, ``(frames,)`` each, float32, full scale at 1.
        sample_rate: of the blocks, samples a second.
        voice: name of the voice that spoke.
        engine: what made it.
        format: how to encode it.
        warnings: what was not done as asked, a sentence each.
        to_rate: samples a second that were asked for; None for the engine's own.
    """

    blocks: Sequence[audio.Samples]
    sample_rate: int
    voice: str
    engine: EngineName
    format: AudioFormat
    warnings: Sequence[str] = ()
    to_rate: int | None = None


class TextToSpeechHandler(Handler[TextToSpeechInput, TextToSpeechOutput]):
    """All of a text-to-speech service but the engine, whichever way that works: in batches or in steps."""

    @property
    @abc.abstractmethod
    def voices(self) -> Sequence[str] | None:
        """Names of the voices; None as long as they are not known. Readable from any thread."""

    def validate(self, input: TextToSpeechInput) -> None:
        """Check text, voice and the scheme of the clip's URL.

        Raises:
            InvalidInput: naming the field.
        """
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
        """Fetch and check the reference clip, if there is one.

        Raises:
            FetchError: the clip could not be downloaded.
            InvalidInput: no voice can be taken from it.
        """
        if input.audio_prompt_url is None:
            return SpeechRequest(input, None)
        data = await context.fetch(input.audio_prompt_url, field=PROMPT_FIELD, kind="audio")
        sound, samples = await context.run_in_child(decode_in_child, data, field=PROMPT_FIELD)
        return SpeechRequest(input, await context.run_in_pool(from_child, sound, samples, data))

    def postprocess(self, result: Speech) -> TextToSpeechOutput:
        """Set the sample rate and encode."""
        return encode(result)


def encode(speech: Speech) -> TextToSpeechOutput:
    """Set the sample rate, encode, and say what the speech was made with. CPU-heavy."""
    rate = fitting_rate(speech.to_rate or speech.sample_rate, speech.format)
    file = write_audio(_at_rate(speech, rate), rate, speech.format)
    warnings = list(speech.warnings)
    if speech.to_rate not in (None, rate):
        warnings.append(f"{speech.format} cannot hold {speech.to_rate} samples a second; it has {rate}")
    return TextToSpeechOutput(
        audio=file.data,
        media_type=MEDIA_TYPES[speech.format],
        format=speech.format,
        sample_rate=rate,
        duration_s=round(file.frames / rate, 3),
        voice=speech.voice,
        engine=speech.engine,
        warnings=warnings,
    )


def _at_rate(speech: Speech, rate: int) -> Iterator[audio.Samples]:
    """One block after the other, each in pieces of a second: an hour is never held twice.

    A block is resampled twice, first for its peak: that costs time, where keeping it costs memory.
    """
    for block in speech.blocks:
        if rate == speech.sample_rate:
            yield audio.limit_peak(block)
            continue
        gain = audio.peak_gain(
            max(map(audio.peak_of, audio.resample_pieces(block, speech.sample_rate, rate)), default=0)
        )
        for piece in audio.resample_pieces(block, speech.sample_rate, rate):
            piece *= gain
            yield piece


def _sayable(character: str) -> bool:
    """Whether it is a letter, a digit or a symbol (as € or an emoji)."""
    return unicodedata.category(character)[0] in "LNS"
