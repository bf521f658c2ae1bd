"""What a request asks of the model: its text cut into pieces, its language, its settings. In the pool."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiservices.errors import InvalidInput
from aiservices.handler import VoiceInfo
from aiservices.handlers.chatterbox.checkpoint import ChatterboxModel
from aiservices.handlers.chatterbox.options import ChatterboxOptions
from aiservices.handlers.chatterbox.pieces import plan_pieces
from aiservices.handlers.chatterbox.request import ChatterboxRequest
from aiservices.handlers.chatterbox.sound import Finish
from aiservices.handlers.chatterbox.voices import Voice
from aiservices.handlers.speech import SpeechRequest
from aiservices.handlers.speech_contract import TextToSpeechInput
from aiservices.handlers.speech_encoding import fitting_rate

if TYPE_CHECKING:
    from aiservices.handlers.chatterbox.sampling import Sampling

_SAMPLE_RATE = 24_000
_UNKNOWN_SHARE = 0.3
_UNGUIDED = {"cfg_weight": 0.5, "exaggeration": 0.5, "min_p": None}


class RequestReader:
    """Reads requests for one loaded checkpoint. Usable from several threads at once.

    Args:
        options: of the service.
        model: the checkpoint.
        infos: the voices that can be named.
    """

    def __init__(self, options: ChatterboxOptions, model: ChatterboxModel, infos: Mapping[str, VoiceInfo]) -> None:
        self._options, self._model, self._infos = options, model, infos

    def read(self, request: SpeechRequest, voice_name: str, voice: Voice, warnings: list[str]) -> ChatterboxRequest:
        """Cut the text and read its tokens. CPU-heavy for long text.

        Args:
            request: what was asked.
            voice_name: what the answer calls the voice.
            voice: what the model made of it.
            warnings: what is already known not to be done as asked, a sentence each.

        Raises:
            InvalidInput: the text has no words, or the model does not speak the language; naming the field.
        """
        asked, model, options = request.input, self._model, self._options
        language = self._language(asked, voice_name)
        pieces = plan_pieces(asked.text, model.reader, language, options.pause_s, streamed=asked.stream)
        if not pieces:
            raise InvalidInput("$.text", "expected words, got only marks and pictures")
        if max(model.reader.unknown_share(piece.ids) for piece in pieces) > _UNKNOWN_SHARE:
            known = ", ".join(model.reader.languages)
            warnings.append(f"many letters of the text are unknown to this model, which speaks {known}")
        if note := model.reader.warning_about(language):
            warnings.append(note)
        return ChatterboxRequest(
            input=asked,
            reference=None,  # the voice is what is needed of it
            pieces=pieces,
            voice_name=voice_name,
            voice=voice,
            sampling=self._sampling(asked),
            cfg_weight=asked.cfg_weight if model.variant.guided else 0.0,
            exaggeration=asked.exaggeration,
            seed=secrets.randbits(32) if asked.seed is None else asked.seed,
            finish=self.finish(asked),
            warnings=warnings + self._without_effect(asked),
        )

    def _language(self, asked: TextToSpeechInput, voice: str) -> str:
        if asked.language is not None:
            self._model.reader.check_language(asked.language)
            return asked.language
        info = self._infos.get(voice)
        own = info.language if info is not None else None
        return own if own is not None and own in self._model.reader.languages else self._options.default_language

    def _sampling(self, asked: TextToSpeechInput) -> Sampling:
        from aiservices.handlers.chatterbox.sampling import Sampling

        usual = self._model.variant
        min_p = usual.min_p if asked.min_p is None or not usual.guided else asked.min_p
        return Sampling(
            temperature=asked.temperature,
            repetition_penalty=_or(asked.repetition_penalty, usual.repetition_penalty),
            min_p=min_p,
            top_p=_or(asked.top_p, usual.top_p),
            top_k=usual.top_k,
        )

    def finish(self, asked: TextToSpeechInput) -> Finish:
        """Tell what is to be done to the sound."""
        return Finish(
            sample_rate=_SAMPLE_RATE,
            to_rate=fitting_rate(asked.sample_rate or _SAMPLE_RATE, asked.format),
            speed=asked.speed,
            lufs=self._options.loudness_lufs,
            watermarker=self._model.watermarker if self._options.watermark else None,
        )

    def _without_effect(self, asked: TextToSpeechInput) -> list[str]:
        variant = self._model.variant
        if variant.guided:
            return []
        changed = [name for name, usual in _UNGUIDED.items() if getattr(asked, name) != usual]
        return [f"{name} has no effect on {variant.name.title()}" for name in changed]


def _or(value: float | None, usual: float) -> float:
    return usual if value is None else value
