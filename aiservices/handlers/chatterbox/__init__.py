"""Text to speech with Chatterbox (Resemble AI, MIT): natural English, cloning a voice from a few seconds of it.

Any checkpoint folder in the library's own layout: ``ve.safetensors``, ``t3_cfg.safetensors``, ``s3gen.safetensors``,
``tokenizer.json`` and, for a voice of its own, ``conds.pt``. Source: https://github.com/resemble-ai/chatterbox.
"""

from __future__ import annotations

import importlib
import io
import re
import secrets
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import attrs
import msgspec

from aiservices.errors import ConfigError, InvalidInput, JobFailed, ServiceError
from aiservices.handler import Task
from aiservices.handlers import audio
from aiservices.handlers.options import read_options
from aiservices.handlers.speech import (
    Reference,
    Speech,
    SpeechRequest,
    TextToSpeechHandler,
    TextToSpeechInput,
    TextToSpeechOutput,
    encode,
    read_reference,
)
from aiservices.handlers.speech_text import split_text
from aiservices.handlers.torch_runtime import free_memory, import_lock, prepare_torch, resolve_dtype

if TYPE_CHECKING:
    import torch

MAX_PIECE_CHARS = 300
"""Longer text makes the model skip and repeat words; it is split here and the parts are joined."""

PAUSE_S = 0.15
"""Silence between two parts."""

OWN_VOICE = "default"
"""The voice in the checkpoint's ``conds.pt``."""

PROMPT_VOICE = "audio_prompt"
"""What the answer calls the voice of a reference clip."""

_FILES = ("ve.safetensors", "t3_cfg.safetensors", "s3gen.safetensors", "tokenizer.json")
_AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
_SPEECH_TOKENS = 6561  # ids from here on are marks, not sound
_TOKEN_FRAMES = 960  # 40 ms at 24 kHz
_TOKENS_A_CHAR = (0.4, 12.0)  # usual is 1.7, at some 15 characters and 25 tokens a second; numbers take up to 8
_SURELY_PLAUSIBLE = 100  # tokens, 4 s: no text is too short for that
_ATTEMPTS = 2
_UNKNOWN_SHARE = 0.3
_MARKS = re.compile(r"\[(?:START|STOP|UNK|SPACE|PAD|SEP|CLS|MASK)\]")


@attrs.frozen
class ChatterboxOptions:
    """The ``options`` of the service.

    Args:
        default_voice: the voice of a request that names none.
        voices_dir: folder with a clip of each further voice, named after it, as ``anna.wav``.
        watermark: whether Resemble AI's inaudible watermark, which tells that the speech is synthetic, is put in.
        dtype: of the language model that makes the speech tokens; the rest stays in float32, which it needs.
        cpu_threads: how many threads torch's CPU kernels use; None leaves that to torch.
        max_new_tokens: bound on one part of a text, 25 tokens a second.
        cached_voices: how many voices of reference clips are remembered, 0.2 MB each.
    """

    default_voice: str = OWN_VOICE
    voices_dir: str | None = None
    watermark: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    cpu_threads: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    max_new_tokens: Annotated[int, msgspec.Meta(ge=25, le=1000)] = 1000
    cached_voices: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 64


class ChatterboxTextToSpeech(TextToSpeechHandler):
    """Speaks with Chatterbox, one request after the other: set ``max_batch_size = 1``.

    A seed gives the same speech again as long as no other model of the process draws from torch's global generator.
    """

    def __init__(self) -> None:
        self._options = ChatterboxOptions()
        self._device = "cpu"
        self._library: Any = None
        self._model: Any = None
        self._voices: dict[str, Any] | None = None
        self._prompts: OrderedDict[str, Any] = OrderedDict()

    @property
    def voices(self) -> Sequence[str] | None:
        """The checkpoint's own voice and those of ``voices_dir``; None before ``load``."""
        return None if self._voices is None else tuple(self._voices)

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        """Load the checkpoint, check that it is whole, and take in the named voices.

        Raises:
            ServiceError: a package, a file or a weight is missing; the text names it.
        """
        self._options = read_options(ChatterboxOptions, options)
        if model_dir is None:
            raise ServiceError("chatterbox needs a model: a folder or a hub id such as ResembleAI/chatterbox")
        _check_files(model_dir)
        self._device = device
        prepare_torch(self._options.cpu_threads)
        self._library = _import_library()
        self._model = _load_model(self._library, model_dir, device)
        self._model.t3.to(resolve_dtype(self._options.dtype, device))
        self._model.t3.speech_head.register_forward_hook(lambda _module, _inputs, logits: logits.float())
        own, self._model.conds = self._model.conds, None
        voices = {} if own is None else {OWN_VOICE: own}
        voices.update(self._named_voices())
        _check_default_voice(self._options.default_voice, tuple(voices))
        self._voices = voices

    def unload(self) -> None:
        """Forget the model and all voices."""
        self._model = self._voices = None
        self._prompts.clear()
        free_memory(self._device)

    def validate(self, input: TextToSpeechInput) -> None:
        """Check also that there is a word: this model cannot say a symbol."""
        super().validate(input)
        if not any(map(str.isalnum, input.text)):
            raise InvalidInput("$.text", "expected words, got no letter and no digit")

    def predict(self, tasks: Sequence[Task[SpeechRequest]]) -> Sequence[Speech | Exception]:
        """Speak one text after the other."""
        return [self._answer(task) for task in tasks]

    def postprocess(self, result: Speech) -> TextToSpeechOutput:
        """Set the tempo, put the watermark in and encode."""
        samples = audio.change_speed(result.samples, result.sample_rate, result.speed)
        return encode(attrs.evolve(result, samples=self._marked(samples, result.sample_rate), speed=1.0))

    def _marked(self, samples: audio.Samples, sample_rate: int) -> audio.Samples:
        import torch

        model = self._model
        if not self._options.watermark:
            return samples
        if model is None:
            raise JobFailed("the model was unloaded before the speech had its watermark")
        with torch.inference_mode():
            marked: audio.Samples = model.watermarker.apply_watermark(samples, sample_rate=sample_rate)
        return marked

    def _answer(self, task: Task[SpeechRequest]) -> Speech | Exception:
        import torch

        try:
            with torch.inference_mode(), _seeded(task.item.input.seed, self._device):
                return self._speak(task)
        except ServiceError as error:
            return error

    def _speak(self, task: Task[SpeechRequest]) -> Speech:
        wanted = task.item.input
        name, voice, notes = self._voice(task.item)
        pieces = split_text(_MARKS.sub(" ", wanted.text), MAX_PIECE_CHARS)
        if not pieces:
            raise InvalidInput("$.text", "expected words, got only marks of the tokenizer")
        parts: list[audio.Samples] = []
        for number, piece in enumerate(pieces, 1):
            if task.context.cancelled:
                raise JobFailed("cancelled")
            sound, note = self._say(piece, voice, wanted)
            parts.append(sound)
            notes += [note] if note and note not in notes else []
            task.context.progress(number / len(pieces))
        rate = self._model.sr
        return Speech(_joined(parts, rate), rate, name, "chatterbox", wanted.format, notes, wanted.speed)

    def _voice(self, request: SpeechRequest) -> tuple[str, Any, list[str]]:
        """Name and conditionals of the voice, and what the caller has to know about the choice."""
        named = request.input.voice
        if request.reference is not None:
            notes = [f"voice {named!r} was not used: audio_prompt_url gives the voice"] if named else []
            return PROMPT_VOICE, self._cached_voice(request.reference), notes
        self.check_voice(name := named or self._options.default_voice)
        return name, (self._voices or {})[name], []

    def _cached_voice(self, reference: Reference) -> Any:
        if reference.digest not in self._prompts:
            self._prompts[reference.digest] = self._conditionals(reference)
        self._prompts.move_to_end(reference.digest)
        while len(self._prompts) > self._options.cached_voices:
            self._prompts.popitem(last=False)
        return self._prompts[reference.digest]

    def _conditionals(self, reference: Reference) -> Any:
        """What the model has to know of a voice. In inference mode: with gradients it would hold 233 MB, not 0.2."""
        import soundfile  # type: ignore[import-untyped]  # ships no types
        import torch

        clip = io.BytesIO()
        soundfile.write(clip, reference.samples, reference.sample_rate, format="WAV", subtype="FLOAT")
        clip.seek(0)
        with torch.inference_mode():
            self._model.prepare_conditionals(clip)
        conditionals, self._model.conds = self._model.conds, None
        return conditionals

    def _named_voices(self) -> dict[str, Any]:
        if self._options.voices_dir is None:
            return {}
        folder = Path(self._options.voices_dir)
        if not folder.is_dir():
            raise ConfigError("options.voices_dir: no such folder")
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _AUDIO_SUFFIXES)
        return {file.stem: self._conditionals(_voice_file(file)) for file in files}

    def _say(self, piece: str, voice: Any, wanted: TextToSpeechInput) -> tuple[audio.Samples, str | None]:
        """Say one part; return the samples and, if it did not come out well, a note."""
        tokens, note = self._speech_tokens(piece, voice, wanted)
        own = dict(voice.gen)  # a copy: the library casts what is in it in place
        sound, _ = self._model.s3gen.inference(speech_tokens=tokens, ref_dict=own)
        samples: audio.Samples = sound.squeeze(0).float().cpu().numpy()
        return samples[: max(len(samples) - _TOKEN_FRAMES, _TOKEN_FRAMES)], note  # the last token is noise

    def _speech_tokens(self, piece: str, voice: Any, wanted: TextToSpeechInput) -> tuple[torch.Tensor, str | None]:
        """Speech tokens, shape ``(tokens,)``; what runs on or breaks off is tried once more."""
        text, note = self._text_tokens(piece)
        for _ in range(_ATTEMPTS):
            made = self._model.t3.inference(
                t3_cond=self._t3_conditionals(voice, wanted.exaggeration),
                text_tokens=text,
                max_new_tokens=self._options.max_new_tokens,
                temperature=wanted.temperature,
                top_p=1.0,
                cfg_weight=wanted.cfg_weight,
            )[0]
            tokens = made[made < _SPEECH_TOKENS]
            low, high = (rate * len(piece) for rate in _TOKENS_A_CHAR)
            ended = bool(made[-1] == self._model.t3.hp.stop_speech_token)
            if ended and low <= len(tokens) <= max(high, _SURELY_PLAUSIBLE):
                return tokens, note
        if not len(tokens):
            raise JobFailed("the model made no sound for a part of the text")
        return tokens, "a part of the speech is longer or shorter than its text; another seed may be better"

    def _text_tokens(self, piece: str) -> tuple[torch.Tensor, str | None]:
        """Text tokens with their start and end marks, shape ``(2, tokens)``, and a note if many letters are unknown.

        Two rows also where ``cfg_weight`` is 0, without which the library's loop fails: the second then counts nothing.
        """
        import torch

        hp, tokenizer = self._model.t3.hp, self._model.tokenizer
        ids = tokenizer.encode(self._library.punc_norm(piece))
        unknown = ids.count(tokenizer.tokenizer.token_to_id("[UNK]")) / max(1, len(ids))
        row = torch.tensor([hp.start_text_token, *ids, hp.stop_text_token], device=self._device)
        note = "many letters of the text are unknown to this model, which speaks English"
        return torch.stack([row, row]), note if unknown > _UNKNOWN_SHARE else None

    def _t3_conditionals(self, voice: Any, exaggeration: float) -> Any:
        """A copy for one generation, which writes into it."""
        import torch

        return self._library.T3Cond(
            speaker_emb=voice.t3.speaker_emb,
            cond_prompt_speech_tokens=voice.t3.cond_prompt_speech_tokens,
            emotion_adv=torch.full((1, 1, 1), exaggeration),
        ).to(device=self._device, dtype=resolve_dtype(self._options.dtype, self._device))


def _check_files(model_dir: Path) -> None:
    if missing := [name for name in _FILES if not (model_dir / name).is_file()]:
        raise ServiceError(f"the model folder is no Chatterbox checkpoint: it lacks {', '.join(missing)}")


def _load_model(library: Any, model_dir: Path, device: str) -> Any:
    """Load with the library, and check what it does not."""
    try:
        with _quiet():
            model = library.ChatterboxTTS.from_local(model_dir, device)
    except RuntimeError as error:
        if "state_dict" not in str(error):
            raise
        raise ServiceError(f"the checkpoint does not fit: {_one_line(str(error))}") from None
    _check_weights(model.s3gen, model_dir / "s3gen.safetensors")
    return model


def _import_library() -> Any:
    """Import ``chatterbox.tts``; typed as anything because the library says nothing of types."""
    try:
        with import_lock, _quiet():
            perth = importlib.import_module("perth")
            loop: Any = importlib.import_module("chatterbox.models.t3.t3")
            library = importlib.import_module("chatterbox.tts")
    except ImportError as error:
        raise ServiceError(
            f"the chatterbox extra is not installed whole ({error}): scripts/install chatterbox"
        ) from None
    if perth.PerthImplicitWatermarker is None:
        raise ServiceError("the watermark cannot be loaded, it needs pkg_resources: pip install 'setuptools<82'")
    if not isinstance(loop.tqdm, partial):
        loop.tqdm = partial(loop.tqdm, disable=True)  # no progress bar in a server's log
    return library


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop the deprecation warnings of a dozen libraries that are not ours to change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_weights(module: Any, file: Path) -> None:
    """Compare the names of the weights: the library takes a file with renamed ones and leaves random numbers there."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        there = set(weights.keys())
    wanted = set(module.state_dict())
    missing, unknown = sorted(wanted - there - set(module.ignore_state_dict_missing)), sorted(there - wanted)
    if missing or unknown:
        found = f"missing: {_some(missing)}; unknown: {_some(unknown)}"
        raise ServiceError(f"the checkpoint does not fit: weights in {file.name} are {found}")


def _check_default_voice(voice: str, voices: Sequence[str]) -> None:
    if voice not in voices and voice != OWN_VOICE:
        raise ConfigError(f"options.default_voice: unknown voice {voice!r}; there are: {', '.join(voices)}")


def _voice_file(file: Path) -> Reference:
    try:
        return read_reference(file.read_bytes())
    except InvalidInput as error:
        raise ConfigError(f"options.voices_dir: {file.name}: {error.reason}") from None


@contextmanager
def _seeded(seed: int | None, device: str) -> Iterator[None]:
    """Draw from a seed of this request alone and leave torch's global generators as they were."""
    import torch

    with torch.random.fork_rng(devices=[torch.device(device)] if device.startswith("cuda") else []):
        torch.manual_seed(secrets.randbits(32) if seed is None else seed)
        yield


def _joined(parts: Sequence[audio.Samples], sample_rate: int) -> audio.Samples:
    import numpy as np

    pause = np.zeros(int(PAUSE_S * sample_rate), dtype=np.float32)
    return np.concatenate([sound for part in parts for sound in (part, pause)][:-1])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]
