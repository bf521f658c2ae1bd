"""The files of the checkpoints that ``services.toml`` names, as their repositories have them, but for the weights.

``config.json`` holds the released values; :func:`write` makes the same files with the numbers of a tiny model, random
weights, and a tokenizer of the same kind.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import attrs
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from aiservices.handlers.torch_runtime import prepare_torch
from tests.handlers.text.checkpoints.templates import (
    MINISTRAL_TEMPLATE,
    MISTRAL_TEMPLATE,
    QWEN3_TEMPLATE,
    QWEN25_TEMPLATE,
)
from tests.handlers.tiny_models import MISTRAL_TOKENS, QWEN_TOKENS, byte_tokenizer, metaspace_tokenizer

_QWEN_VISION_TOKENS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
}

_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where the words of Qwen's and of Mistral's newer tokenizers begin."""

QWEN25_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}


def _qwen3_config(text: dict[str, Any], vision: dict[str, Any], tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": 151655,
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "dtype": "bfloat16",
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
            "tie_word_embeddings": tied,
            "use_cache": True,
            "vocab_size": 151936,
            **text,
        },
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": 151656,
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "initializer_range": 0.02,
            "model_type": "qwen3_vl",
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
    }


_SMALL_EYES = {
    "deepstack_visual_indexes": [5, 11, 17],
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
}
QWEN3_8B_CONFIG = _qwen3_config(
    {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_hidden_layers": 36},
    {
        "deepstack_visual_indexes": [8, 16, 24],
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "out_hidden_size": 4096,
    },
    tied=False,
)
QWEN3_4B_CONFIG = _qwen3_config(
    {"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "num_hidden_layers": 36},
    {**_SMALL_EYES, "out_hidden_size": 2560},
    tied=True,
)
QWEN3_2B_CONFIG = _qwen3_config(
    {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16, "num_hidden_layers": 28},
    {**_SMALL_EYES, "out_hidden_size": 2048},
    tied=True,
)
MISTRAL_CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.0.dev0",
    "use_cache": True,
    "vocab_size": 32768,
}


def _ministral_config(text: dict[str, Any], tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_index": 10,
        "model_type": "mistral3",
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "quantization_config": {
            "activation_scheme": "static",
            "dequantize": False,
            "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
            "quant_method": "fp8",
            "weight_block_size": None,
        },
        "spatial_merge_size": 2,
        "text_config": {
            "attention_dropout": 0.0,
            "head_dim": 128,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 262144,
            "model_type": "ministral3",
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_parameters": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 16.0,
                "llama_4_scaling_beta": 0.1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 16384,
                "rope_theta": 1000000.0,
                "rope_type": "yarn",
                "type": "yarn",
            },
            "sliding_window": None,
            "tie_word_embeddings": tied,
            "use_cache": True,
            "vocab_size": 131072,
            **text,
        },
        "tie_word_embeddings": tied,
        "transformers_version": "5.0.0.dev0",
        "vision_config": {
            "attention_dropout": 0.0,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "image_size": 1540,
            "initializer_range": 0.02,
            "intermediate_size": 4096,
            "model_type": "pixtral",
            "num_attention_heads": 16,
            "num_channels": 3,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "vision_feature_layer": -1,
    }


MINISTRAL_8B_CONFIG = _ministral_config(
    {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34}, tied=False
)
MINISTRAL_3B_CONFIG = _ministral_config(
    {"hidden_size": 3072, "intermediate_size": 9216, "num_hidden_layers": 26}, tied=True
)

_QWEN_GENERATION = {"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True}
QWEN25_GENERATION = {**_QWEN_GENERATION, "repetition_penalty": 1.05, "temperature": 0.000001}
QWEN3_GENERATION = {**_QWEN_GENERATION, "top_p": 0.8, "top_k": 20, "temperature": 0.7, "repetition_penalty": 1.0}
MISTRAL_GENERATION = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
MINISTRAL_GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "max_length": 262144, "pad_token_id": 11}

QWEN25_PROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
QWEN3_PROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}


_QWEN25_FILES = {
    "preprocessor_config.json": QWEN25_PROCESSOR,
    "video_preprocessor_config.json": {**QWEN25_PROCESSOR, "video_processor_type": "Qwen2VLVideoProcessor"},
}
_QWEN3_FILES = {
    "preprocessor_config.json": QWEN3_PROCESSOR,
    "video_preprocessor_config.json": {
        **QWEN3_PROCESSOR,
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
        "video_processor_type": "Qwen3VLVideoProcessor",
    },
}
_MINISTRAL_FILES = {
    "processor_config.json": {
        "image_processor": {
            "image_processor_type": "PixtralImageProcessorFast",
            "patch_size": 14,
            "size": {"longest_edge": 1540},
        },
        "image_token": "[IMG]",
        "patch_size": 14,
        "processor_class": "PixtralProcessor",
        "spatial_merge_size": 2,
    }
}


@attrs.frozen
class Shape:
    """A released checkpoint without its weights.

    Attributes:
        repository: where it is.
        parameters: billions, those of a vision tower included.
        processors: the files that describe what pictures and videos go through.
        tokenizer: "bytes" or "metaspace", as :mod:`tests.handlers.tiny_models` makes them.
    """

    repository: str
    config: dict[str, Any]
    generation: dict[str, Any]
    template: str
    parameters: float
    processors: dict[str, Any] = attrs.Factory(dict)
    tokenizer: str = "bytes"

    @property
    def sees(self) -> bool:
        """Whether it describes pictures here."""
        return "preprocessor_config.json" in self.processors


SHAPES = (
    Shape("Qwen/Qwen2.5-VL-7B-Instruct", QWEN25_CONFIG, QWEN25_GENERATION, QWEN25_TEMPLATE, 8.29, _QWEN25_FILES),
    Shape("Qwen/Qwen3-VL-8B-Instruct", QWEN3_8B_CONFIG, QWEN3_GENERATION, QWEN3_TEMPLATE, 8.77, _QWEN3_FILES),
    Shape("Qwen/Qwen3-VL-4B-Instruct", QWEN3_4B_CONFIG, QWEN3_GENERATION, QWEN3_TEMPLATE, 4.44, _QWEN3_FILES),
    Shape("Qwen/Qwen3-VL-2B-Instruct", QWEN3_2B_CONFIG, QWEN3_GENERATION, QWEN3_TEMPLATE, 2.13, _QWEN3_FILES),
    Shape(
        "mistralai/Mistral-7B-Instruct-v0.3",
        MISTRAL_CONFIG,
        MISTRAL_GENERATION,
        MISTRAL_TEMPLATE,
        7.25,
        tokenizer="metaspace",
    ),
    Shape(
        "mistralai/Ministral-3-8B-Instruct-2512",
        MINISTRAL_8B_CONFIG,
        MINISTRAL_GENERATION,
        MINISTRAL_TEMPLATE,
        8.92,
        _MINISTRAL_FILES,
    ),
    Shape(
        "mistralai/Ministral-3-3B-Instruct-2512",
        MINISTRAL_3B_CONFIG,
        MINISTRAL_GENERATION,
        MINISTRAL_TEMPLATE,
        3.85,
        _MINISTRAL_FILES,
    ),
)


def write(shape: Shape, folder: Path) -> Path:
    """Write a tiny checkpoint of a shape: every file of its repository that anything reads."""
    qwen = shape.sees
    tokens = QWEN_TOKENS if qwen else (*MISTRAL_TOKENS, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    make = byte_tokenizer if shape.tokenizer == "bytes" else metaspace_tokenizer
    tokenizer = split_as_released(make(tokens), shape.config["model_type"])
    config = _shrink(shape.config, tokenizer, qwen)
    _write_json(folder / "config.json", config)
    _write_weights(folder)
    _write_json(folder / "config.json", config)  # as it was: saving a model writes its own
    ids = {"eos_token_id": [tokens.index("<|im_end|>"), 0], "bos_token_id": 0, "pad_token_id": 0} if qwen else {}
    _write_json(folder / "generation_config.json", {**shape.generation, **ids})
    for name, content in shape.processors.items():
        _write_json(folder / name, content)
    _write_tokenizer(tokenizer, folder, shape, qwen)
    return folder


def split_as_released(tokenizer: Tokenizer, model_type: str) -> Tokenizer:
    """Let a tokenizer take text apart as the released one of its kind."""
    if model_type == "mistral":
        tokenizer.normalizer = normalizers.Sequence([])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
        return tokenizer
    split = pre_tokenizers.Split(Regex(_TEKKEN_SPLIT if model_type == "mistral3" else _QWEN_SPLIT), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    if model_type != "mistral3":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def _shrink(config: dict[str, Any], tokenizer: Tokenizer, qwen: bool) -> dict[str, Any]:
    config = copy.deepcopy(config)
    text = config.get("text_config", config)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
    text.update(heads, hidden_size=64, intermediate_size=96, vocab_size=tokenizer.get_vocab_size() + 5)
    text["initializer_range"] = 0.3
    if "head_dim" in text:
        text["head_dim"] = 16
    for scaling in ("rope_scaling", "rope_parameters"):
        if "mrope_section" in text.get(scaling, {}):
            text[scaling]["mrope_section"] = [2, 3, 3]
    vision = config.get("vision_config")
    if vision is not None:
        if "depth" in vision:
            vision.update(depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64)
            vision.update({name: [0, 1] for name in ("deepstack_visual_indexes",) if name in vision})
            vision.update({name: [1] for name in ("fullatt_block_indexes",) if name in vision})
        else:
            vision.update(num_hidden_layers=1, hidden_size=32, intermediate_size=48, num_attention_heads=2, head_dim=16)
    if qwen:
        ids = {name: tokenizer.token_to_id(token) for name, token in _QWEN_VISION_TOKENS.items()}
        config.update(ids, video_token_id=tokenizer.get_vocab_size() + 1)
        text.update(eos_token_id=tokenizer.token_to_id("<|im_end|>"), bos_token_id=0)
    return config


def _write_weights(folder: Path) -> None:
    prepare_torch()
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    config = transformers.AutoConfig.from_pretrained(folder)
    quantization = config.__dict__.pop("quantization_config", None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, config.architectures[0])(config)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(folder, max_shard_size="200KB")  # several files with an index, as the released ones
    index = folder / "model.safetensors.index.json"
    if quantization is not None:
        written = json.loads(index.read_text())
        for shard in sorted(set(written["weight_map"].values())):
            weights = quantise(load_file(folder / shard))
            save_file(weights, folder / shard, metadata={"format": "pt"})
            written["weight_map"].update(dict.fromkeys(weights, shard))
        _write_json(index, written)


def quantise(weights: dict[str, Any]) -> dict[str, Any]:
    """Make the language model's linear layers FP8 with a scale each, as Ministral's are."""
    import torch

    quantised = {}
    for name, weight in weights.items():
        if "language_model" not in name or not name.endswith("proj.weight"):
            quantised[name] = weight
            continue
        scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        quantised[name] = (weight / scale).to(torch.float8_e4m3fn)
        quantised[f"{name}_scale_inv"] = scale.to(torch.bfloat16)
        quantised[name.replace(".weight", ".activation_scale")] = torch.tensor(1.0, dtype=torch.bfloat16)
    return quantised


def _write_tokenizer(tokenizer: Tokenizer, folder: Path, shape: Shape, qwen: bool) -> None:
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    names = names if qwen else {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in names.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    classes = {"mistral": "LlamaTokenizer", "mistral3": "TokenizersBackend"}
    settings = {
        "tokenizer_class": classes.get(shape.config["model_type"], "Qwen2Tokenizer"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
        **names,
    }
    if shape.config["model_type"] == "mistral3":
        (folder / "chat_template.jinja").write_text(shape.template)
        _write_json(folder / "tekken.json", {"config": {}, "vocab": []})  # what mistral_common reads
    else:
        settings["chat_template"] = shape.template
    if shape.config["model_type"] == "mistral":
        for name in ("tokenizer.model", "tokenizer.model.v3"):  # sentencepiece's, beside the one that is used
            (folder / name).write_bytes(b"\n")
    if qwen:  # as a processor reads it, and the tokenizer's parts
        _write_json(folder / "chat_template.json", {"chat_template": shape.template})
        model = json.loads(tokenizer.to_str())["model"]
        _write_json(folder / "vocab.json", model["vocab"])
        (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    _write_json(folder / "tokenizer_config.json", settings)
