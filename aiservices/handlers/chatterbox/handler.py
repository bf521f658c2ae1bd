"""Text to speech with Chatterbox (Resemble AI, MIT), many callers at once."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from aiservices.errors import ConfigError, InvalidInput, ServiceError, Unavailable
from aiservices.estimates import MemoryNeed
from aiservices.handler import Context, StepHandler, Task, VoiceInfo
from aiservices.handlers.chatterbox.checkpoint import ChatterboxModel, load_checkpoint
from aiservices.handlers.chatterbox.library import import_library
from aiservices.handlers.chatterbox.memory import estimate_memory
from aiservices.handlers.chatterbox.options import OWN_VOICE, ChatterboxOptions
from aiservices.handlers.chatterbox.pieces import MAX_PIECE_TOKENS, plan_pieces
from aiservices.handlers.chatterbox.request import ChatterboxRequest
from aiservices.handlers.chatterbox.sound import Finish
from aiservices.handlers.chatterbox.voices import VoiceStore, prepare_clip
from aiservices.handlers.speech import Speech, SpeechRequest, TextToSpeechHandler
from aiservices.handlers.speech_contract import TextToSpeechInput, TextToSpeechOutput
from aiservices.handlers.speech_encoding import fitting_rate
from aiservices.handlers.torch_runtime import free_memory, prepare_torch, resolve_dtype
from aiservices.options import read_options

if TYPE_CHECKING:
    from aiservices.handlers.chatterbox.engine import SpeechEngine
    from aiservices.handlers.chatterbox.sampling import Sampling

PROMPT_VOICE = "audio_prompt"
"""What the answer calls the voice of a reference clip."""

_SAMPLE_RATE = 24_000
_UNKNOWN_SHARE = 0.3
_PROMPT_TOKENS = 400  # of the voice, at most: Turbo's 376
_UNGUIDED = {"cfg_weight": 0.5, "exaggeration": 0.5, "min_p": None}


@attrs.frozen(eq=False)
class _Loaded:
    model: ChatterboxModel
    voices: VoiceStore
    engine: SpeechEngine


class ChatterboxTextToSpeech(TextToSpeechHandler, StepHandler[TextToSpeechInput, TextToSpeechOutput]):
    """Speaks with Chatterbox; ``max_batch_size`` is how many jobs are under way, ``rows`` how many pieces of them.

    A seed gives the same speech tokens whichever jobs are beside it, and samples equal within rounding; the first piece
    of a text is what the library makes of it after ``torch.manual_seed``.
    """

    option_folders = ("voices_dir",)

    def __init__(self) -> None:
        self._options = ChatterboxOptions()
        self._device = "cpu"
        self._loaded: _Loaded | None = None

    @property
    def voices(self) -> Sequence[str] | None:
        """The checkpoint's own voice and those of ``voices_dir``; None before ``load``."""
        return None if self._loaded is None else tuple(self._loaded.voices.infos)

    def voices_offered(self) -> Sequence[VoiceInfo]:
        """The same voices with what is known of them; none before ``load``."""
        return () if self._loaded is None else tuple(self._loaded.voices.infos.values())

    def estimate_memory(
        self, model_dir: Path | None, model: str, device: str, options: Mapping[str, Any], max_batch_size: int
    ) -> MemoryNeed | None:
        """Estimate what the model takes of its device; ``rows`` and ``sound_rows`` say how many pieces at once."""
        return estimate_memory(model_dir, model, device, read_options(ChatterboxOptions, options))

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        """Load the checkpoint, check that it is whole, and take in the named voices.

        Raises:
            ServiceError: a package, a file or a weight is missing; the text names it.
        """
        self._options = read_options(ChatterboxOptions, options)
        if model_dir is None:
            raise ServiceError("chatterbox needs a model: a folder or a hub id such as ResembleAI/chatterbox")
        self._device = device
        prepare_torch(self._options.cpu_threads)
        library = import_library()
        dtype = resolve_dtype(_dtype(self._options.dtype, device), device)
        self.adopt(load_checkpoint(library, model_dir, device, self._options.variant, dtype), self._options, device)

    def adopt(self, model: ChatterboxModel, options: ChatterboxOptions, device: str) -> None:
        """Serve with a model that is in memory already, as a benchmark has it.

        Raises:
            ConfigError: an option does not fit the model; the text names it.
        """
        self._options, self._device = options, device
        voices = VoiceStore(model, device, self._options.voices_dir, self._options.cached_voices)
        self._check_defaults(model, voices)
        self._loaded = _Loaded(model, voices, self._engine(model, voices))

    def unload(self) -> None:
        """Forget the model and all voices; pieces that are being finished are waited for."""
        if self._loaded is not None:
            self._loaded.engine.close()
        self._loaded = None
        free_memory(self._device)

    def validate(self, input: TextToSpeechInput) -> None:
        """Check also that there is a word: this model cannot say a symbol.

        Raises:
            InvalidInput: naming the field.
        """
        super().validate(input)
        if not any(map(str.isalnum, input.text)):
            raise InvalidInput("$.text", "expected words, got no letter and no digit")

    async def preprocess(self, input: TextToSpeechInput, context: Context) -> ChatterboxRequest:
        """Fetch and check the reference clip, cut the text and read its tokens.

        Raises:
            FetchError: the clip could not be downloaded.
            InvalidInput: the clip, the voice or the language is none for this model; naming the field.
        """
        request = await super().preprocess(input, context)
        return await context.run_in_pool(self._read, request)

    def admit(self, tasks: Sequence[Task[ChatterboxRequest]]) -> None:
        """Let jobs join."""
        self._ready.engine.admit(tasks)

    def step(self) -> Sequence[tuple[Task[ChatterboxRequest], Speech | Exception]]:
        """Choose the next token of every piece, and make sound of what is complete.

        Returns:
            Jobs whose sound is all finished, so that ``postprocess`` waits for nothing.
        """
        return self._ready.engine.step()

    def evict(self, tasks: Sequence[Task[ChatterboxRequest]]) -> None:
        """Take jobs out."""
        if self._loaded is not None:
            self._loaded.engine.evict(tasks)

    def reset(self) -> None:
        """Forget all jobs."""
        if self._loaded is not None:
            self._loaded.engine.reset()

    @property
    def _ready(self) -> _Loaded:
        if self._loaded is None:
            raise Unavailable("the model is not loaded")
        return self._loaded

    def _check_defaults(self, model: ChatterboxModel, voices: VoiceStore) -> None:
        voice, language = self._options.default_voice, self._options.default_language
        if voice not in voices.infos and voice != OWN_VOICE:
            raise ConfigError(f"options.default_voice: unknown voice {voice!r}; there are: {', '.join(voices.infos)}")
        if language not in model.reader.languages:
            known = ", ".join(model.reader.languages)
            raise ConfigError(f"options.default_language: the model does not speak {language!r}; it speaks {known}")

    def _engine(self, model: ChatterboxModel, voices: VoiceStore) -> SpeechEngine:
        from aiservices.handlers.chatterbox.engine import SpeechEngine
        from aiservices.handlers.chatterbox.s3gen import S3GenEngine
        from aiservices.handlers.chatterbox.t3 import T3Engine

        options, variant, hp = self._options, model.variant, model.t3.hp
        graphs = options.cuda_graphs and self._device.startswith("cuda")
        longest = _PROMPT_TOKENS + MAX_PIECE_TOKENS + options.max_new_tokens
        t3 = T3Engine(
            model.t3,
            model.library.english.T3Cond,
            self._device,
            capacity=options.rows,
            fixed_columns=longest if graphs else None,
            graphs=graphs,
        )
        return SpeechEngine(
            t3,
            S3GenEngine(model.s3gen, self._device, steps=options.flow_steps or variant.flow_steps),
            voices,
            marks=None if variant.family == "turbo" else (hp.start_text_token, hp.stop_text_token),
            tail=variant.tail,
            max_new_tokens=options.max_new_tokens,
            redraws=options.redraws,
            sound_rows=options.sound_rows,
            finish_threads=options.finish_threads,
        )

    def _read(self, request: SpeechRequest) -> ChatterboxRequest:
        """Do what is heavy and needs no model's thread. In the pool."""
        asked, model, options = request.input, self._ready.model, self._options
        voice, warnings = self._voice(request)
        language = self._language(asked, voice)
        pieces = plan_pieces(asked.text, model.reader, language, options.pause_s)
        if not pieces:
            raise InvalidInput("$.text", "expected words, got only marks and pictures")
        if max(model.reader.unknown_share(piece.ids) for piece in pieces) > _UNKNOWN_SHARE:
            known = ", ".join(model.reader.languages)
            warnings.append(f"many letters of the text are unknown to this model, which speaks {known}")
        if note := model.reader.warning_about(language):
            warnings.append(note)
        return ChatterboxRequest(
            input=asked,
            reference=None,  # the clip at its rates is what is needed of it
            pieces=pieces,
            voice=voice,
            clip=None if request.reference is None else prepare_clip(request.reference, model.variant),
            sampling=self._sampling(asked),
            cfg_weight=asked.cfg_weight if model.variant.guided else 0.0,
            exaggeration=asked.exaggeration,
            seed=secrets.randbits(32) if asked.seed is None else asked.seed,
            finish=self._finish(asked),
            warnings=warnings + self._without_effect(asked),
        )

    def _voice(self, request: SpeechRequest) -> tuple[str, list[str]]:
        """Name of the voice, and what the caller has to know about the choice."""
        named = request.input.voice
        if request.reference is not None:
            warnings = [f"voice {named!r} was not used: audio_prompt_url gives the voice"] if named else []
            return PROMPT_VOICE, warnings
        self.check_voice(name := named or self._options.default_voice)
        return name, []

    def _language(self, asked: TextToSpeechInput, voice: str) -> str:
        loaded = self._ready
        if asked.language is not None:
            loaded.model.reader.check_language(asked.language)
            return asked.language
        info = loaded.voices.infos.get(voice)
        own = info.language if info is not None else None
        return own if own is not None and own in loaded.model.reader.languages else self._options.default_language

    def _sampling(self, asked: TextToSpeechInput) -> Sampling:
        from aiservices.handlers.chatterbox.sampling import Sampling

        usual = self._ready.model.variant
        min_p = usual.min_p if asked.min_p is None or not usual.guided else asked.min_p
        return Sampling(
            temperature=asked.temperature,
            repetition_penalty=_or(asked.repetition_penalty, usual.repetition_penalty),
            min_p=min_p,
            top_p=_or(asked.top_p, usual.top_p),
            top_k=usual.top_k,
        )

    def _finish(self, asked: TextToSpeechInput) -> Finish:
        return Finish(
            sample_rate=_SAMPLE_RATE,
            to_rate=fitting_rate(asked.sample_rate or _SAMPLE_RATE, asked.format),
            speed=asked.speed,
            lufs=self._options.loudness_lufs,
            watermarker=self._ready.model.watermarker if self._options.watermark else None,
        )

    def _without_effect(self, asked: TextToSpeechInput) -> list[str]:
        variant = self._ready.model.variant
        if variant.guided:
            return []
        changed = [name for name, usual in _UNGUIDED.items() if getattr(asked, name) != usual]
        return [f"{name} has no effect on {variant.name.title()}" for name in changed]


def _or(value: float | None, usual: float) -> float:
    return usual if value is None else value


def _dtype(wanted: str, device: str) -> Any:
    """Turn ``auto`` into what the device computes in: not every GPU does in bfloat16."""
    if wanted != "auto" or not device.startswith("cuda"):
        return wanted
    import torch

    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
