"""The input and output of text to speech, the same whichever engine speaks."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import attrs
import msgspec

from aiservices.handler import output_file
from aiservices.handlers.speech_encoding import AudioFormat

MAX_TEXT_CHARS = 80_000
"""An hour of speech at 22 characters a second, which is fast."""

EngineName: TypeAlias = Literal["espeak-ng", "chatterbox"]
"""What makes the speech, as an answer names it."""


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
    engine: Annotated[EngineName, msgspec.Meta(description="What made the speech.")]
    warnings: Annotated[list[str], msgspec.Meta(description="What was not done as asked, a sentence each.")]
