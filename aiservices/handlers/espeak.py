"""Text to speech with espeak-ng: small, instant, 100 languages, no model to download.

The library, espeak-ng 1.52, and its data come from the package ``espeakng-loader``, which has wheels for Linux and
macOS on x86-64 and ARM. espeak-ng is free software under the GPL, version 3 or later; here it runs as a program of its
own, see :mod:`aiservices.handlers.espeak_process`.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
import msgspec

from aiservices.errors import ConfigError, InvalidInput, JobFailed, ServiceError
from aiservices.handler import BatchHandler, Task, VoiceInfo
from aiservices.handlers import audio, espeak_process
from aiservices.handlers.reference_clip import Reference
from aiservices.handlers.speech import Speech, SpeechRequest, TextToSpeechHandler
from aiservices.handlers.speech_contract import TextToSpeechInput, TextToSpeechOutput
from aiservices.options import read_options

WORDS_PER_MINUTE = 175
"""espeak-ng's own tempo, at ``speed`` 1."""

_TIMEOUT_S = 60.0
_SAID_S = 0.05  # what has no sound at all still comes out as 10 ms of silence
_MIDDLE = 50  # of espeak's scales from 0 to 99
_PITCH_STEPS = (0, 25, 50, 75, 99)
_FEMALE = "+f3"


@attrs.frozen
class EspeakOptions:
    """The ``options`` of the service.

    Args:
        default_voice: the voice of a request that names none.
        max_speech_s: longer speech is refused. 5000 characters of English take some 300 s at normal tempo, of Mandarin
            1000 s, and 1300 s in a voice that does not know the script and reads it out character by character.
    """

    default_voice: str = "english-us"
    max_speech_s: Annotated[float, msgspec.Meta(gt=0, le=7200)] = 1200.0

    def __attrs_post_init__(self) -> None:
        if self.default_voice not in VOICES:
            known = ", ".join(VOICES)
            raise ConfigError(f"options.default_voice: unknown voice {self.default_voice!r}; there are: {known}")


@attrs.frozen
class EspeakVoice:
    """A voice under a friendly name.

    Args:
        language: espeak-ng's voice file.
        variant: espeak-ng's variant of the speaker, with its plus sign; empty for the usual, male one.
        description: who speaks what.
    """

    language: str
    variant: str
    description: str


VOICES: Mapping[str, EspeakVoice] = {
    "english-us": EspeakVoice("gmw/en-US", "", "American English, man"),
    "english-us-female": EspeakVoice("gmw/en-US", _FEMALE, "American English, woman"),
    "english-gb": EspeakVoice("gmw/en", "", "British English, man"),
    "english-gb-female": EspeakVoice("gmw/en", _FEMALE, "British English, woman"),
    "english-scotland": EspeakVoice("gmw/en-GB-scotland", "", "Scottish English, man"),
    "german": EspeakVoice("gmw/de", "", "German, man"),
    "french": EspeakVoice("roa/fr", _FEMALE, "French, woman"),
    "spanish": EspeakVoice("roa/es", "", "Spanish of Spain, man"),
    "italian": EspeakVoice("roa/it", _FEMALE, "Italian, woman"),
    "portuguese-brazil": EspeakVoice("roa/pt-BR", "", "Portuguese of Brazil, man"),
    "russian": EspeakVoice("zle/ru", "", "Russian, man"),
    "hindi": EspeakVoice("inc/hi", _FEMALE, "Hindi, woman"),
    "mandarin": EspeakVoice("sit/cmn", _FEMALE, "Mandarin Chinese, woman"),
}
"""The voices by the name that a caller gives."""


@attrs.frozen
class _Speaker:
    """espeak-ng's own name of a voice, and its pitch from 0 to 99."""

    name: str
    pitch: int = _MIDDLE


class EspeakTextToSpeech(TextToSpeechHandler, BatchHandler[TextToSpeechInput, TextToSpeechOutput]):
    """Speaks with espeak-ng. Of a reference clip it takes the pitch; ``exaggeration`` moves the range of the pitch."""

    Options = EspeakOptions

    def __init__(self) -> None:
        self._options = EspeakOptions()
        self._command: list[str] = []
        self._pitches_hz: dict[str, list[float]] = {}

    @property
    def voices(self) -> Sequence[str]:
        """The names in :data:`VOICES`."""
        return tuple(VOICES)

    def voices_offered(self) -> Sequence[VoiceInfo]:
        """The voices of :data:`VOICES`."""
        return [VoiceInfo(name, voice.description) for name, voice in VOICES.items()]

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        """Find the library and say a word with it.

        Raises:
            ConfigError: an option is not one, or names no voice.
            ServiceError: espeakng-loader is missing or of no use; the text says which.
        """
        self._options = read_options(EspeakOptions, options)
        self._command = _espeak_command()
        self._say("ready", _Speaker(VOICES[self._options.default_voice].language))

    def predict(self, tasks: Sequence[Task[SpeechRequest]]) -> Sequence[Speech | Exception]:
        """Speak one text after the other; each takes some 20 ms and 1 ms a second of speech."""
        return [self._answer(task) for task in tasks]

    def _answer(self, task: Task[SpeechRequest]) -> Speech | Exception:
        try:
            if task.context.cancelled:
                return JobFailed("cancelled")
            speech = self._speak(task.item)
        except ServiceError as error:
            return error
        task.context.count("audio_seconds", sum(map(len, speech.blocks)) / speech.sample_rate)
        return speech

    def _speak(self, request: SpeechRequest) -> Speech:
        wanted = request.input
        name = wanted.voice or self._options.default_voice
        warnings = _without_effect(wanted)
        speaker = _Speaker(VOICES[name].language + VOICES[name].variant)
        if request.reference is not None:
            speaker, warning = self._imitate(request.reference, VOICES[name])
            warnings.append(warning)
        samples = self._say(wanted.text, speaker, wanted.speed, wanted.exaggeration, wanted.seed or 0)
        if len(samples) < _SAID_S * espeak_process.SAMPLE_RATE or not samples.any():
            raise InvalidInput("$.text", f"the voice {name!r} has no sound for any of it")
        return Speech(
            [audio.set_level(samples, espeak_process.SAMPLE_RATE)],
            espeak_process.SAMPLE_RATE,
            name,
            "espeak-ng",
            wanted.format,
            warnings,
            to_rate=wanted.sample_rate,
        )

    def _imitate(self, reference: Reference, voice: EspeakVoice) -> tuple[_Speaker, str]:
        """Choose the speaker of this language who gets to the reference's pitch with the smallest change."""
        wanted_hz = audio.median_pitch_hz(reference.samples, reference.sample_rate)
        if wanted_hz is None:
            unchanged = _Speaker(voice.language + voice.variant)
            return unchanged, "no pitch could be made out in audio_prompt_url; the voice is unchanged"
        names = dict.fromkeys(voice.language + variant for variant in (voice.variant, "", _FEMALE))
        speakers = [_Speaker(name, self._pitch_for(name, wanted_hz)) for name in names]
        speaker = min(speakers, key=lambda speaker: abs(speaker.pitch - _MIDDLE))
        return speaker, f"not a clone: espeak-ng only takes the pitch of audio_prompt_url, about {wanted_hz:.0f} Hz"

    def _pitch_for(self, name: str, wanted_hz: float) -> int:
        """Return espeak's setting that is nearest to a pitch for this speaker, from measurements made once."""
        import numpy as np

        if name not in self._pitches_hz:
            self._pitches_hz[name] = [self._measured_hz(_Speaker(name, pitch)) for pitch in _PITCH_STEPS]
        octaves = np.log2(self._pitches_hz[name])
        return round(float(np.interp(math.log2(wanted_hz), octaves, _PITCH_STEPS)))

    def _measured_hz(self, speaker: _Speaker) -> float:
        numbers = " ".join(map(str, range(1, 13)))  # every language can count
        hertz = audio.median_pitch_hz(self._say(numbers, speaker), espeak_process.SAMPLE_RATE)
        if hertz is None:
            raise ServiceError(f"the espeak-ng voice {speaker.name!r} has no pitch")
        return hertz

    def _say(
        self, text: str, speaker: _Speaker, speed: float = 1.0, liveliness: float = 0.5, seed: int = 0
    ) -> audio.Samples:
        import numpy as np

        request = {
            "text": _plain(text),
            "voice": speaker.name,
            "rate": round(WORDS_PER_MINUTE * speed),
            "pitch": speaker.pitch,
            "pitch_range": min(99, round(2 * _MIDDLE * liveliness)),
            "seed": seed,
            "max_frames": int(self._options.max_speech_s * espeak_process.SAMPLE_RATE),
        }
        pcm = _run(self._command, json.dumps(request).encode())
        samples = np.frombuffer(pcm, dtype="<i2").astype(np.float32)
        samples /= np.float32(32768)
        return samples


def _espeak_command() -> list[str]:
    try:
        import espeakng_loader  # type: ignore[import-untyped]  # ships no types
    except ImportError:
        raise ServiceError("the package espeakng-loader is missing: pip install espeakng-loader==0.2.4") from None
    # Isolated and without site-packages: it needs neither, and starts in half the time.
    program = [sys.executable, "-I", "-S", espeak_process.__file__]
    return [*program, espeakng_loader.get_library_path(), espeakng_loader.get_data_path()]


def _run(command: Sequence[str], request: bytes) -> bytes:
    """Run the program; its own group keeps a Ctrl-C meant for the server away from it."""
    try:
        done = subprocess.run(
            command,
            input=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            process_group=0,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise JobFailed(f"espeak-ng was not done after {_TIMEOUT_S:g} s") from None
    if done.returncode == espeak_process.TOO_LONG:
        raise InvalidInput("$.text", "saying it takes longer than this service allows; send it in parts")
    if done.returncode == espeak_process.UNUSABLE_LIBRARY:
        raise ServiceError("the espeak-ng library does not find its data; reinstall espeakng-loader")
    if done.returncode == espeak_process.UNKNOWN_VOICE:
        raise ServiceError("this espeak-ng lacks one of the voices; reinstall espeakng-loader")
    if done.returncode != 0:
        raise JobFailed("espeak-ng broke on this text; other words or another voice may work")
    return done.stdout


def _plain(text: str) -> str:
    """Leave out control characters, of which espeak-ng takes some for commands, and halves of characters."""
    return "".join(" " if unicodedata.category(character) in ("Cc", "Cs") else character for character in text)


def _without_effect(wanted: TextToSpeechInput) -> list[str]:
    usual = {field.name: field.default for field in attrs.fields(TextToSpeechInput)}
    return [
        f"{name} has no effect on espeak-ng"
        for name in ("language", "cfg_weight", "temperature", "repetition_penalty", "min_p", "top_p")
        if getattr(wanted, name) != usual[name]
    ]
