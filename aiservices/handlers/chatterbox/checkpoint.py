"""Load a checkpoint into the library's modules and check that it is whole."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from aiservices.errors import ServiceError
from aiservices.handlers.chatterbox.library import Library, quiet
from aiservices.handlers.chatterbox.variants import VOICE_ENCODER_FILES, TextReader, Variant, find_variant

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_MADE_BY_THE_LIBRARY = ("tokenizer._mel_filters", "tokenizer.window")
"""Constants that some released files leave out."""


@attrs.frozen(eq=False)
class ChatterboxModel:
    """A loaded checkpoint: the library's modules in evaluation mode, none of its state.

    Attributes:
        t3: text to speech tokens.
        s3gen: speech tokens to sound, with the tokenizer and the speaker encoder that listen to a clip.
        voice_encoder: listens to a clip for T3.
        reader: of texts.
        watermarker: puts the library's inaudible mark in.
        own_voice: ``conds.pt`` as it is, with ``t3`` and ``gen``; None without one.
    """

    variant: Variant
    library: Library
    t3: Any
    s3gen: Any
    voice_encoder: Any
    reader: TextReader
    watermarker: Any
    own_voice: dict[str, Any] | None


def load_checkpoint(library: Library, model_dir: Path, device: str, wanted: str, dtype: torch.dtype) -> ChatterboxModel:
    """Load what a folder holds.

    Args:
        library: the classes.
        model_dir: the folder.
        device: where the weights go.
        wanted: name of a variant, or ``auto``.
        dtype: of T3; the rest is in float32.

    Raises:
        ServiceError: a file or a weight is missing, or there is one too many; the text names it.
    """
    import torch

    variant = find_variant(model_dir, wanted)
    with quiet(), torch.inference_mode():
        t3 = library.english.T3(_config(library, variant))
        _fill(t3, variant.newest_t3(model_dir), device)
        if t3.is_gpt:
            del t3.tfmr.wte  # embeddings of words, which it never reads
        s3gen = library.english.S3Gen(meanflow=variant.family == "turbo")
        _fill(s3gen, _first(model_dir, variant.s3gen_files), device, may_have_more=True)
        encoder = library.english.VoiceEncoder()
        _fill(encoder, _first(model_dir, VOICE_ENCODER_FILES), device)
        return ChatterboxModel(
            variant=variant,
            library=library,
            t3=t3.to(dtype),
            s3gen=s3gen,
            voice_encoder=encoder,
            reader=TextReader(library, variant, model_dir),
            watermarker=library.perth.PerthImplicitWatermarker(),
            own_voice=_own_voice(model_dir / "conds.pt"),
        )


def _config(library: Library, variant: Variant) -> Any:
    """Size T3; the numbers of Turbo and Nano are those of ``ChatterboxTurboTTS.from_local``."""
    config = library.t3_config.T3Config
    if variant.family != "turbo":
        return config.multilingual() if variant.family == "multilingual" else config.english_only()
    turbo = config(text_tokens_dict_size=50276)
    turbo.llama_config_name, turbo.input_pos_emb = variant.backbone, None
    turbo.speech_tokens_dict_size, turbo.speech_cond_prompt_len = 6563, 375
    turbo.use_perceiver_resampler = turbo.emotion_adv = False
    return turbo


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    return next(folder / name for name in names if (folder / name).is_file())


def _fill(module: Any, file: Path, device: str, *, may_have_more: bool = False) -> None:
    """Put a file's weights in; the library takes one with renamed weights and leaves random numbers there.

    Args:
        module: the library's.
        file: with its weights.
        device: where they go.
        may_have_more: whether weights that the module does not have are only worth a warning: releases of S3Gen differ
            in what they keep beside what is used.
    """
    weights = _read(file)
    there, wanted = set(weights), set(module.state_dict())
    missing, unknown = sorted(wanted - there - set(_MADE_BY_THE_LIBRARY)), sorted(there - wanted)
    if unknown and not missing and may_have_more:
        log.warning("weights in %s are not known and not used: %s", file.name, _some(unknown))
        weights = {name: tensor for name, tensor in weights.items() if name in wanted}
    elif missing or unknown:
        found = f"missing: {_some(missing)}; unknown: {_some(unknown)}"
        raise ServiceError(f"the checkpoint does not fit: weights in {file.name} are {found}")
    try:
        module.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:500]
        raise ServiceError(f"the checkpoint does not fit: {file.name}: {reason}") from None
    module.to(device).eval()


def _read(file: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling and safetensors each have errors of their own
        raise ServiceError(f"the checkpoint's {file.name} cannot be read: {error}") from None
    return weights


def _own_voice(file: Path) -> dict[str, Any] | None:
    return _read(file) if file.is_file() else None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
