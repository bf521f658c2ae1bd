"""Checkpoints of Chatterbox's own classes, 45 MB instead of 3 GB, with random weights that end a speech by themselves.

English, multilingual (v2 and v3), Turbo and Nano, each in the files of the released one.

The library builds its modules with fixed sizes, so :func:`small_modules` has to be in force where such a checkpoint is
written and where it is loaded.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiservices.handlers.chatterbox import library
from aiservices.handlers.torch_runtime import prepare_torch

HIDDEN = 64
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'\"-"
STOP, UNKNOWN, SPACE, START = 0, 1, 2, 255
STOP_SPEECH = 6562
END_OF_TEXT = 50256
SOUNDS = ("laugh", "chuckle", "sigh", "cough", *(f"sound {number}" for number in range(15)))
"""What Turbo can do beside speaking; four of its names and as many others as it has."""
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
    gpt = {"n_embd": HIDDEN, "hidden_size": HIDDEN, "n_head": 2, "n_layer": 2}
    gpt |= {"vocab_size": 8, "bos_token_id": 0, "eos_token_id": 0, "n_positions": 2048, "n_ctx": 2048}
    patch.setitem(llama_configs.LLAMA_CONFIGS, "GPT2_medium", llama_configs.GPT2_MEDIUM_CONFIG | gpt)
    patch.setattr(library, "GPT2_SMALL", {"n_embd": 96, "hidden_size": 96, "n_head": 3, "n_layer": 2})
    patch.setitem(llama_configs.LLAMA_CONFIGS, "GPT2_small", None)  # so that what is added is taken out in the end
    del llama_configs.LLAMA_CONFIGS["GPT2_small"]
    library.add_backbones(llama_configs.LLAMA_CONFIGS)
    alignment = importlib.import_module("chatterbox.models.t3.inference.alignment_stream_analyzer")
    ours = importlib.import_module("aiservices.handlers.chatterbox.alignment")
    patch.setattr(alignment, "LLAMA_ALIGNED_HEADS", [(0, 1), (1, 0), (1, 1)])
    patch.setattr(ours, "ALIGNED_HEADS", ((0, 1), (1, 0), (1, 1)))
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


def write_checkpoint(folder: Path, variant: str = "english") -> None:
    """Write the files of a released checkpoint, one of those in :data:`FILES`."""
    import torch
    from safetensors.torch import save_file

    tts = import_library()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        t3 = make_t3(variant)
        s3gen, encoder = tts.S3Gen(meanflow=variant in BACKBONES).eval(), tts.VoiceEncoder().eval()
        t3_file, s3gen_file, encoder_file = FILES[variant]
        save_file(t3.state_dict(), folder / t3_file)
        for file, module in ((s3gen_file, s3gen), (encoder_file, encoder)):
            write = torch.save if file.endswith(".pt") else save_file
            write(module.state_dict(), folder / file)
        WRITE_TOKENIZER[variant](folder)
        voice_of_its_own(t3, s3gen).save(folder / "conds.pt")


def make_t3(variant: str = "english") -> Any:
    """Make a T3 of one of the variants that ends a speech by itself."""
    import torch

    module = importlib.import_module("chatterbox.models.t3.t3")
    config = importlib.import_module("chatterbox.models.t3.modules.t3_config").T3Config
    hp = config.multilingual() if variant.startswith("multilingual") else config.english_only()
    if variant in BACKBONES:
        hp = config(text_tokens_dict_size=50276)
        turbo = {"llama_config_name": BACKBONES[variant], "speech_tokens_dict_size": 6563, "input_pos_emb": None}
        hp.__dict__.update(turbo, speech_cond_prompt_len=375, use_perceiver_resampler=False, emotion_adv=False)
    with torch.inference_mode():
        t3 = module.T3(hp).eval()
        (plant_turbo_stop if variant in BACKBONES else plant_stop)(t3)
    return t3


BACKBONES = {"turbo": "GPT2_medium", "nano": "GPT2_small"}

FILES = {
    "english": ("t3_cfg.safetensors", "s3gen.safetensors", "ve.safetensors"),
    "multilingual": ("t3_mtl23ls_v2.safetensors", "s3gen.pt", "ve.pt"),
    "multilingual v3": ("t3_mtl23ls_v3.safetensors", "s3gen.pt", "ve.pt"),
    "turbo": ("t3_turbo_v1.safetensors", "s3gen_meanflow.safetensors", "ve.safetensors"),
    "nano": ("t3_nano_v1.safetensors", "s3gen_meanflow.safetensors", "ve.safetensors"),
}


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


def plant_turbo_stop(t3: Any) -> None:
    """Let only some tokens be likely, and the stop token about one time in twenty."""
    t3.speech_head.weight[:] *= 6
    t3.speech_head.weight[STOP_SPEECH] = 0
    t3.speech_head.bias[:] = 0
    t3.speech_head.bias[ALLOWED:] = -1000
    t3.speech_head.bias[STOP_SPEECH] = 4.5


def write_tokenizer(folder: Path, name: str = "tokenizer.json", languages: Sequence[str] = ()) -> None:
    """Write a tokenizer of single letters with the marks at their usual ids."""
    from tokenizers import Tokenizer, models

    marks = {"[STOP]": STOP, "[UNK]": UNKNOWN, "[SPACE]": SPACE, "[START]": START}
    vocabulary = marks | {letter: number for number, letter in enumerate(LETTERS, 3)}
    vocabulary |= {f"[{language}]": number for number, language in enumerate(languages, 300)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.add_special_tokens([*marks, *(f"[{language}]" for language in languages)])
    tokenizer.save(str(folder / name))


def write_turbo_tokenizer(folder: Path) -> None:
    """Write GPT-2's tokenizer in the released files: its 50257 tokens, of which only bytes are used, and 19 sounds."""
    from tokenizers import pre_tokenizers

    end, used = "<|endoftext|>", sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*used, "he", *(f"<unused{number}>" for number in range(len(used) + 1, END_OF_TEXT)), end]
    sounds = {f"[{name}]": number for number, name in enumerate(SOUNDS, END_OF_TEXT + 1)}
    kind = {"lstrip": False, "rstrip": False, "normalized": True, "single_word": False, "special": False}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): {"content": sound, **kind} for sound, number in sounds.items()},
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
        "model_max_length": 1024,
        "tokenizer_class": "GPT2Tokenizer",
    }
    files = {
        "vocab.json": {token: number for number, token in enumerate(tokens)},
        "added_tokens.json": sounds,
        "tokenizer_config.json": config,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nh e\n", encoding="utf-8")


_multilingual = partial(
    write_tokenizer, name="grapheme_mtl_merged_expanded_v1.json", languages=("en", "de", "fr", "zh")
)

WRITE_TOKENIZER: dict[str, Callable[[Path], None]] = {
    "english": write_tokenizer,
    "multilingual": _multilingual,
    "multilingual v3": _multilingual,
    "turbo": write_turbo_tokenizer,
    "nano": write_turbo_tokenizer,
}


def voice_of_its_own(t3: Any, s3gen: Any) -> Any:
    """Conditionals of a hum."""
    import torch

    tts = import_library()
    hum = torch.sin(torch.arange(24_000) * (2 * torch.pi * 120 / 24_000)) / 2
    speaker = torch.nn.functional.normalize(torch.randn(1, t3.hp.speaker_embed_size))
    prompt = torch.randint(0, 6561, (1, 150))
    t3_cond = tts.T3Cond(speaker_emb=speaker, cond_prompt_speech_tokens=prompt, emotion_adv=0.5 * torch.ones(1, 1, 1))
    return tts.Conditionals(t3_cond, s3gen.embed_ref(hum, 24_000, device="cpu"))
