"""Voices: what the model makes of a clip, made once for each content and kept beside the clip and in memory.

A voice is made in the pool, while the model speaks. The modules that listen (the voice encoder, S3Gen's tokenizer and
its speaker encoder) only read their weights, and nobody else runs them; what the library makes at the first use and
keeps, it makes when the model warms up, before there are jobs. On a GPU the pool's threads use the default stream, not
the model's, and a voice is complete when it is handed out. A model that is unloaded meanwhile lives until the voice is
made.

A voice takes 0.2 MB, if gradients are off where it is made: with them it holds 233 MB. What is kept is never handed to
the library, which casts and fills in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from aiservices.errors import ConfigError, InvalidInput, Unavailable
from aiservices.handler import VoiceInfo
from aiservices.handlers.chatterbox.checkpoint import ChatterboxModel
from aiservices.handlers.chatterbox.clips import RATE, TOKENIZER_RATE, Clip, prepare_clip
from aiservices.handlers.chatterbox.options import OWN_VOICE
from aiservices.handlers.reference_clip import Reference, read_reference

if TYPE_CHECKING:
    import torch

    from aiservices.handlers.chatterbox.flow import GenVoice

_AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")

_HEARD_S = 10  # of a clip, by S3Gen


@attrs.frozen(eq=False)
class Voice:
    """A voice as T3 and S3Gen take it, on the model's device.

    Args:
        speaker: the voice encoder's embedding, ``[1, 256]``.
        prompt: speech tokens for T3, ``[1, tokens]``.
        gen: for S3Gen.
    """

    speaker: torch.Tensor
    prompt: torch.Tensor
    gen: GenVoice


class VoiceStore:
    """All voices of a service: the checkpoint's own, those of a folder, those of clips. Usable from any thread.

    Args:
        model: what makes them.
        device: where they are kept.
        folder: of named clips, if there is one.
        max_cached: how many are kept in memory, 0.2 MB each.

    Raises:
        ConfigError: the folder is not there, or a clip in it is of no use; the text names it.
    """

    def __init__(self, model: ChatterboxModel, device: str, folder: str | None, max_cached: int) -> None:
        self._model, self._device, self._max_cached = model, device, max_cached
        self._made: OrderedDict[str, Voice] = OrderedDict()
        self._lock = threading.Lock()
        self._own = None if model.own_voice is None else self._placed(_own_parts(model.own_voice))
        self._files: dict[str, tuple[Path, str]] = {}
        self.infos: dict[str, VoiceInfo] = {}
        """The voices that can be named."""
        if self._own is not None:
            self.infos[OWN_VOICE] = VoiceInfo(OWN_VOICE, "the voice of the checkpoint")
        self._kind = _fingerprint(model)
        for file in _clips(folder):
            self._take_in(file)

    def __len__(self) -> int:
        return len(self._made)

    def content_of(self, name: str) -> str:
        """Return the digest of the clip of a named voice; empty for the checkpoint's own."""
        return "" if name == OWN_VOICE and self._own is not None else self._files[name][1]

    def at_hand(self, digest: str) -> Voice | None:
        """Return the voice of a clip if it need not be made."""
        if not digest:
            return self._own
        with self._lock:
            voice = self._made.get(digest)
            if voice is not None:
                self._made.move_to_end(digest)
            return voice

    def named(self, name: str) -> Voice:
        """Return a voice of :attr:`infos`, made anew if it was forgotten.

        Raises:
            Unavailable: its clip cannot be read any more.
        """
        digest = self.content_of(name)
        return self.at_hand(digest) or self._keep(digest, self._from_file(*self._files[name]))

    def of_clip(self, reference: Reference) -> Voice:
        """Return the voice of a clip, made at its first use.

        Raises:
            InvalidInput: it is shorter than this variant needs.
        """
        made = self.at_hand(reference.digest)
        return made or self._keep(reference.digest, self.make(prepare_clip(reference, self._model.variant)))

    def make(self, clip: Clip) -> Voice:
        """Listen to a clip. Source: ``prepare_conditionals`` of the library."""
        import torch

        model, variant = self._model, self._model.variant
        with torch.inference_mode():
            gen = model.s3gen.embed_ref(clip.at_24k[: _HEARD_S * RATE], RATE, device=self._device)
            heard = clip.at_16k[: variant.listens_s * TOKENIZER_RATE]
            length = model.t3.hp.speech_cond_prompt_len
            prompt, _ = model.s3gen.tokenizer.forward([heard], max_len=length)
            embedded = model.voice_encoder.embeds_from_wavs([clip.at_16k], sample_rate=TOKENIZER_RATE)
            speaker = torch.from_numpy(embedded).mean(dim=0, keepdim=True)
            voice = self._placed(
                {
                    "speaker": speaker,
                    "prompt": prompt.reshape(1, -1),
                    "gen_tokens": gen["prompt_token"][0],
                    "gen_frames": gen["prompt_feat"][0],
                    "gen_embedding": gen["embedding"],
                }
            )
        if self._device.startswith("cuda"):
            torch.cuda.current_stream(self._device).synchronize()
        return voice

    def _take_in(self, file: Path) -> None:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        self._files[file.stem] = file, digest
        self.infos[file.stem] = _info(file)
        self.named(file.stem)

    def _from_file(self, file: Path, digest: str) -> Voice:
        kept = file.with_name(f"{file.stem}.{digest[:16]}-{self._kind}.voice")
        parts = _read_parts(kept)
        if parts is not None:
            return self._placed(parts)
        try:
            voice = self.make(prepare_clip(read_reference(file.read_bytes()), self._model.variant))
        except InvalidInput as error:
            raise ConfigError(f"options.voices_dir: {file.name}: {error.reason}") from None
        except OSError as error:
            raise Unavailable(f"the clip of the voice {file.stem!r} cannot be read: {error.strerror}") from None
        _write_parts(kept, voice)
        return voice

    def _keep(self, digest: str, voice: Voice) -> Voice:
        with self._lock:
            self._made[digest] = voice
            while len(self._made) > self._max_cached:
                self._made.popitem(last=False)
        return voice

    def _placed(self, parts: Mapping[str, Any]) -> Voice:
        from aiservices.handlers.chatterbox.flow import GenVoice

        # Clones, so that no small part keeps a large whole alive.
        own = {name: part.detach().clone().to(self._device) for name, part in parts.items()}
        gen = GenVoice(own["gen_tokens"].long(), own["gen_frames"].float(), own["gen_embedding"].float())
        return Voice(own["speaker"].float(), own["prompt"].long(), gen)


def _own_parts(conds: Mapping[str, Any]) -> dict[str, Any]:
    t3, gen = conds["t3"], conds["gen"]
    return {
        "speaker": t3["speaker_emb"].reshape(1, -1),
        "prompt": t3["cond_prompt_speech_tokens"],
        "gen_tokens": gen["prompt_token"][0],
        "gen_frames": gen["prompt_feat"][0],
        "gen_embedding": gen["embedding"],
    }


def _clips(folder: str | None) -> Iterator[Path]:
    if folder is None:
        return
    if not Path(folder).is_dir():
        raise ConfigError("options.voices_dir: no such folder")
    yield from sorted(file for file in Path(folder).iterdir() if file.suffix.lower() in _AUDIO_SUFFIXES)


def _info(file: Path) -> VoiceInfo:
    beside = file.with_suffix(".json")
    if not beside.is_file():
        return VoiceInfo(file.stem)
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
        description, language = said.get("description", ""), said.get("language")
    except (ValueError, AttributeError):
        raise ConfigError(f"options.voices_dir: {beside.name}: expected a JSON object") from None
    if not isinstance(description, str) or not isinstance(language, str | None):
        raise ConfigError(f"options.voices_dir: {beside.name}: description and language have to be text")
    return VoiceInfo(file.stem, description, language)


def _fingerprint(model: ChatterboxModel) -> str:
    """Name what a voice depends on: the weights of those that listen, of the large tokenizer its first ones."""
    state = hashlib.sha256(model.variant.name.encode())
    listeners = (model.voice_encoder, model.s3gen.speaker_encoder)
    tensors = [tensor for module in listeners for tensor in module.state_dict().values()]
    for tensor in (*tensors, *list(model.s3gen.tokenizer.state_dict().values())[:8]):
        state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()[:8]


def _read_parts(file: Path) -> dict[str, Any] | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file) if file.is_file() else None
    except (OSError, SafetensorError):
        return None  # it is made anew


def _write_parts(file: Path, voice: Voice) -> None:
    """Write beside the clip, whole or not at all; a folder that cannot be written to costs time at the next start."""
    from safetensors.torch import save

    parts = {
        "speaker": voice.speaker,
        "prompt": voice.prompt,
        "gen_tokens": voice.gen.tokens,
        "gen_frames": voice.gen.frames,
        "gen_embedding": voice.gen.embedding,
    }
    data = save({name: part.cpu().contiguous() for name, part in parts.items()})
    try:
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}")
        with os.fdopen(handle, "wb") as target:
            target.write(data)
        Path(name).replace(file)
    except OSError:
        return
