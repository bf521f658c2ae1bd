"""Text to speech with Chatterbox (Resemble AI, MIT), many callers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from aiservices.errors import ConfigError, InvalidInput, ServiceError, Unavailable
from aiservices.estimates import MemoryNeed
from aiservices.handler import Context, StepHandler, Task, VoiceInfo
from aiservices.handlers.chatterbox.checkpoint import ChatterboxModel, load_checkpoint
from aiservices.handlers.chatterbox.clips import hum
from aiservices.handlers.chatterbox.library import import_library, quiet
from aiservices.handlers.chatterbox.memory import estimate_memory
from aiservices.handlers.chatterbox.options import OWN_VOICE, ChatterboxOptions
from aiservices.handlers.chatterbox.pieces import MAX_PIECE_TOKENS
from aiservices.handlers.chatterbox.reading import RequestReader
from aiservices.handlers.chatterbox.request import ChatterboxRequest
from aiservices.handlers.chatterbox.turns import Turns
from aiservices.handlers.chatterbox.voices import Voice, VoiceStore
from aiservices.handlers.reference_clip import Reference
from aiservices.handlers.speech import Speech, SpeechRequest, TextToSpeechHandler
from aiservices.handlers.speech_contract import TextToSpeechInput, TextToSpeechOutput
from aiservices.handlers.torch_runtime import free_memory, prepare_torch, resolve_dtype
from aiservices.options import read_options

if TYPE_CHECKING:
    from aiservices.handlers.chatterbox.engine import SpeechEngine

PROMPT_VOICE = "audio_prompt"
"""What the answer calls the voice of a reference clip."""

_WARM_UP_TEXT = "Hello."
_PROMPT_TOKENS = 400  # of the voice, at most: Turbo's 376


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

    Options = ChatterboxOptions
    option_folders = ("voices_dir",)

    def __init__(self) -> None:
        self._options = ChatterboxOptions()
        self._device = "cpu"
        self._loaded: _Loaded | None = None
        self._turns = Turns()

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
        """Load the checkpoint, check that it is whole, take in the named voices, and speak a little to warm up.

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
        from aiservices.handlers.chatterbox.gpu import prepare_gpu

        prepare_gpu(device)
        with quiet():
            voices = VoiceStore(model, device, options.voices_dir, options.cached_voices)
            self._check_defaults(model, voices)
            loaded = _Loaded(model, voices, self._engine(model))
            try:
                self._warm_up(loaded)
            except Exception:
                loaded.engine.close()
                raise
        self._loaded = loaded

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
        """Fetch and check the reference clip, listen to it, cut the text and read its tokens.

        Raises:
            FetchError: the clip could not be downloaded.
            InvalidInput: the clip, the voice or the language is none for this model; naming the field.
        """
        request = await super().preprocess(input, context)
        named, warnings = self._voice_name(request)
        voice = await self._voice(named, request.reference, context)
        reader = RequestReader(self._options, self._ready.model, self._ready.voices.infos)
        return await context.run_in_pool(reader.read, request, named, voice, warnings)

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

    def _engine(self, model: ChatterboxModel) -> SpeechEngine:
        import torch

        from aiservices.handlers.chatterbox.engine import SpeechEngine
        from aiservices.handlers.chatterbox.rendering import Renderer
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
            judged=variant.judged,
        )
        s3gen = S3GenEngine(model.s3gen, self._device, steps=options.flow_steps or variant.flow_steps)
        return SpeechEngine(
            t3,
            Renderer(s3gen, beside=self._device != "cpu" or torch.get_num_threads() > 1),
            marks=None if variant.family == "turbo" else (hp.start_text_token, hp.stop_text_token),
            tail=variant.tail,
            max_new_tokens=options.max_new_tokens,
            redraws=options.redraws,
            sound_rows=options.sound_rows,
            finish_threads=options.finish_threads,
        )

    def _warm_up(self, loaded: _Loaded) -> None:
        """Do all that a job will do once, so that the first need not wait for what is done once only."""
        voice = loaded.voices.make(hum())
        asked = TextToSpeechInput(text=_WARM_UP_TEXT)
        samples = loaded.engine.warm_up(voice, loaded.model.reader.read(asked.text, self._options.default_language))
        RequestReader(self._options, loaded.model, loaded.voices.infos).finish(asked).apply(samples, 0.0)

    async def _voice(self, name: str, reference: Reference | None, context: Context) -> Voice:
        """Get a voice; if it has to be made, in the pool, and once for all jobs that want it."""
        voices = self._ready.voices
        digest = voices.content_of(name) if reference is None else reference.digest
        voice = voices.at_hand(digest)
        if voice is not None:
            return voice
        async with self._turns.turn(digest):
            if reference is None:
                return await context.run_in_pool(voices.named, name)
            return await context.run_in_pool(voices.of_clip, reference)

    def _voice_name(self, request: SpeechRequest) -> tuple[str, list[str]]:
        """Name of the voice, and what the caller has to know about the choice."""
        named = request.input.voice
        if request.reference is not None:
            warnings = [f"voice {named!r} was not used: audio_prompt_url gives the voice"] if named else []
            return PROMPT_VOICE, warnings
        self.check_voice(name := named or self._options.default_voice)
        return name, []


def _dtype(wanted: str, device: str) -> Any:
    """Turn ``auto`` into what the device computes in: not every GPU does in bfloat16."""
    if wanted != "auto":
        return wanted
    if not device.startswith("cuda"):
        return "float32"
    import torch

    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
