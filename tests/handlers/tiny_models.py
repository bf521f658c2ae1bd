"""Write tiny checkpoints of the real classes with random weights, to load them as any other checkpoint is loaded.

The weights are drawn wide, so that the likeliest token stands clear of the second one and rounding cannot swap them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from aiservices.handlers.torch_runtime import prepare_torch

QwenKind = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
TokenizerKind = Literal["bytes", "metaspace"]

TEXTS = (
    "A small striped red mug on a white background.",
    "Describe the product in this picture: what it is, its colour, pattern, size and background.",
    "Write a product listing for an online shop as JSON with title, description, keywords and category.",
    '{"title":"Red mug","description":"A mug.","keywords":["red","mug","cup"],"category":"Home & Kitchen"}',
    "Language: English\nCategories: Home & Kitchen; Clothing & Shoes; Bags & Accessories; Other\nProduct: a mug",
)
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL_TOKENS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }}[/INST]{% endif %}{% endfor %}"
)


def byte_tokenizer(special: tuple[str, ...], size: int = 420) -> Tokenizer:
    """Train a byte-level BPE as Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


def metaspace_tokenizer(special: tuple[str, ...], size: int = 460) -> Tokenizer:
    """Train a BPE as sentencepiece's: spaces are letters, and bytes stand in for characters it does not know."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=pieces, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    written = json.loads(tokenizer.to_str())
    written["added_tokens"] = [token for token in written["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(written))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def write_mistral(folder: Path, tokenizer: TokenizerKind = "bytes", *, seed: int = 0, **changes: Any) -> Path:
    """Write a Mistral of two layers; ``changes`` go into its config."""
    prepare_torch()
    from transformers import MistralConfig, MistralForCausalLM

    make = byte_tokenizer if tokenizer == "bytes" else metaspace_tokenizer
    built = make(MISTRAL_TOKENS)
    settings = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "sliding_window": None,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        # Wider than the tokenizer, as many real checkpoints are.
        "vocab_size": built.get_vocab_size() + 5,
    }
    config = MistralConfig(**{**settings, **changes})
    _write_model(MistralForCausalLM, config, folder, seed)
    _write_tokenizer(built, folder, MISTRAL_TEMPLATE, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return folder


def write_ministral(folder: Path, *, seed: int = 0) -> Path:
    """Write a Ministral 3: a decoder with scaled positions inside a model that could see."""
    prepare_torch()
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    built = byte_tokenizer(MISTRAL_TOKENS)
    text = {
        "model_type": "ministral3",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "sliding_window": None,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "vocab_size": built.get_vocab_size() + 5,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
        "patch_size": 8,
        "image_size": 64,
    }
    config = Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    _write_model(Mistral3ForConditionalGeneration, config, folder, seed)
    _write_tokenizer(built, folder, MISTRAL_TEMPLATE, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return folder


def write_qwen(folder: Path, kind: QwenKind, *, seed: int = 0, **changes: Any) -> Path:
    """Write a Qwen-VL of three layers and patches of 8 pixels; ``changes`` go into its text config."""
    prepare_torch()
    import transformers

    config_class, model_class = {
        "qwen2_vl": (transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration),
        "qwen2_5_vl": (transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration),
        "qwen3_vl": (transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration),
    }[kind]
    tokenizer = byte_tokenizer(QWEN_TOKENS)
    ids = {token: place for place, token in enumerate(QWEN_TOKENS)}
    config = config_class(
        text_config={**_text_config(kind, tokenizer.get_vocab_size(), ids["<|im_end|>"]), **changes},
        vision_config=_vision_config(kind),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=tokenizer.get_vocab_size() + 1,
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    _write_model(model_class, config, folder, seed)
    _write_tokenizer(tokenizer, folder, QWEN_TEMPLATE, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 8,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 32 * 32, "longest_edge": 160 * 160},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def _text_config(kind: QwenKind, tokens: int, eos: int) -> dict[str, Any]:
    settings = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,
        "vocab_size": tokens + 5,
        "eos_token_id": eos,
        "bos_token_id": None,
        "pad_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
    }
    if kind == "qwen3_vl":
        settings["head_dim"] = 16
    return settings


def _vision_config(kind: QwenKind) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    shared["initializer_range"] = 0.3
    if kind == "qwen2_vl":
        return {**shared, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    own = {**shared, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
    if kind == "qwen2_5_vl":
        return {**own, "window_size": 32, "fullatt_block_indexes": [1]}
    return {**own, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}


def _write_model(model_class: Any, config: Any, folder: Path, seed: int) -> None:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
    model.generation_config.eos_token_id = config.get_text_config().eos_token_id
    model.save_pretrained(folder)


def _write_tokenizer(tokenizer: Tokenizer, folder: Path, template: str, **tokens: str) -> None:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
