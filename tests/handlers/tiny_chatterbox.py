"""A checkpoint of Chatterbox's own classes, 45 MB instead of 3 GB, with random weights that end a speech by themselves.

The library builds its modules with fixed sizes, so :func:`small_modules` has to be in force where such a checkpoint is
written and where it is loaded.
"""

from __future__ import annotations

import importlib
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiservices.handlers.torch_runtime import prepare_torch

HIDDEN = 64
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'\"-"
STOP, UNKNOWN, SPACE, START = 0, 1, 2, 255
STOP_SPEECH = 6562
ALLOWED = 40
"""How many different speech tokens the planted weights let through."""


def import_library() -> Any:
    """Import ``chatterbox.tts`` behind the guard, without its deprecations."""
    prepare_torch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("chatterbox.tts")


def small_modules(patch: pytest.MonkeyPatch) -> None:
    """Make the library build small modules; 512 channels are a floor in its flow encoder."""
    tts = import_library()
    s3gen = importlib.import_module("chatterbox.models.s3gen.s3gen")
    llama_configs = importlib.import_module("chatterbox.models.t3.llama_configs")
    cond_enc = importlib.import_module("chatterbox.models.t3.modules.cond_enc")
    voice = importlib.import_module("chatterbox.models.voice_encoder.config").VoiceEncConfig()
    tokenizer = importlib.import_module("s3tokenizer.model_v2").S3TokenizerV2.__init__.__defaults__[0]

    sizes = {"hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    patch.setitem(llama_configs.LLAMA_CONFIGS, "Llama_520M", llama_configs.LLAMA_520M_CONFIG_DICT | sizes | heads)
    patch.setattr(cond_enc, "Perceiver", partial(cond_enc.Perceiver, 4, HIDDEN, HIDDEN, 2))
    voice.ve_hidden_size = 16
    patch.setattr(tts, "VoiceEncoder", partial(tts.VoiceEncoder, voice))
    for name, value in {"n_audio_state": 64, "n_audio_head": 1, "n_audio_layer": 1}.items():
        patch.setattr(tokenizer, name, value)
    smaller(patch, s3gen, "CAMPPlus", growth_rate=4, init_channels=16)
    smaller(patch, s3gen, "UpsampleConformerEncoder", linear_units=32, num_blocks=1)
    shorter(patch, s3gen, "UpsampleConformerEncoder", "up_encoders")
    smaller(
        patch,
        s3gen,
        "ConditionalDecoder",
        channels=[32],
        attention_head_dim=16,
        n_blocks=1,
        num_mid_blocks=1,
        num_heads=2,
    )
    smaller(patch, s3gen, "ConvRNNF0Predictor", cond_channels=32)
    smaller(patch, s3gen, "HiFTGenerator", base_channels=32)


def smaller(patch: pytest.MonkeyPatch, module: Any, name: str, **sizes: Any) -> None:
    """Have ``module`` construct ``name`` with these sizes whatever else it asks for."""
    original = getattr(module, name)
    patch.setattr(module, name, lambda *args, **given: original(*args, **given | sizes))


def shorter(patch: pytest.MonkeyPatch, module: Any, name: str, layers: str) -> None:
    """Have ``module`` keep one of ``layers``, whose number is not an argument."""
    original = getattr(module, name)

    def construct(*args: Any, **given: Any) -> Any:
        made = original(*args, **given)
        setattr(made, layers, getattr(made, layers)[:1])
        return made

    patch.setattr(module, name, construct)


def write_checkpoint(folder: Path) -> None:
    """Write ``ve``, ``t3_cfg`` and ``s3gen.safetensors``, ``tokenizer.json`` and ``conds.pt``."""
    import torch
    from safetensors.torch import save_file

    tts = import_library()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        t3, s3gen, encoder = tts.T3().eval(), tts.S3Gen().eval(), tts.VoiceEncoder().eval()
        plant_stop(t3)
        for name, module in (("t3_cfg", t3), ("s3gen", s3gen), ("ve", encoder)):
            save_file(module.state_dict(), folder / f"{name}.safetensors")
        write_tokenizer(folder / "tokenizer.json")
        voice_of_its_own(t3, s3gen).save(folder / "conds.pt")


def plant_stop(t3: Any, ends_at: int = 25) -> None:
    """Let only some tokens be likely, and the stop token ever more so up to ``ends_at``.

    Channel 0 of the backbone is a constant and channel 1 the position, which nothing else writes to; the head's
    weights for them are then a bias for each token.
    """
    for embedding in (
        t3.speech_emb.weight,
        t3.text_emb.weight,
        t3.speech_pos_emb.emb.weight,
        t3.text_pos_emb.emb.weight,
    ):
        embedding[:, :2] = 0
    t3.speech_emb.weight[:, 0] = 20
    positions = t3.speech_pos_emb.emb.weight
    positions[:, 1] = (positions.new_tensor(range(len(positions))) / ends_at).clamp(max=2) * 10
    for layer in t3.tfmr.layers:
        layer.self_attn.v_proj.weight *= 8  # or the voice and the text would hardly be heard
        layer.self_attn.o_proj.weight *= 8
        layer.self_attn.o_proj.weight[:2] = 0
        layer.mlp.down_proj.weight[:2] = 0
    head = t3.speech_head.weight
    head *= 20  # beside the constant the other channels are small
    head[:, :2] = 0
    head[ALLOWED:, 0] = -20
    head[STOP_SPEECH] = 0
    head[STOP_SPEECH, 0], head[STOP_SPEECH, 1] = -2, 4


def write_tokenizer(file: Path) -> None:
    """Write a tokenizer of single letters with the marks at their usual ids."""
    from tokenizers import Tokenizer, models

    marks = {"[STOP]": STOP, "[UNK]": UNKNOWN, "[SPACE]": SPACE, "[START]": START}
    vocabulary = marks | {letter: number for number, letter in enumerate(LETTERS, 3)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(marks))
    tokenizer.save(str(file))


def voice_of_its_own(t3: Any, s3gen: Any) -> Any:
    """Conditionals of a hum."""
    import torch

    tts = import_library()
    hum = torch.sin(torch.arange(24_000) * (2 * torch.pi * 120 / 24_000)) / 2
    speaker = torch.nn.functional.normalize(torch.randn(1, t3.hp.speaker_embed_size))
    prompt = torch.randint(0, 6561, (1, t3.hp.speech_cond_prompt_len))
    t3_cond = tts.T3Cond(speaker_emb=speaker, cond_prompt_speech_tokens=prompt, emotion_adv=0.5 * torch.ones(1, 1, 1))
    return tts.Conditionals(t3_cond, s3gen.embed_ref(hum, 24_000, device="cpu"))
