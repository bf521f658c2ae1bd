"""The files of the checkpoints that ``services.toml`` names, as their repositories have them, but for the weights.

:func:`write` makes the same files with the numbers of a tiny model, random weights, and a tokenizer of the same kind.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import attrs
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from aiservices.handlers.torch_runtime import prepare_torch
from tests.handlers.text.checkpoints import configs, templates
from tests.handlers.tiny_models import QWEN_TOKENS, byte_tokenizer, metaspace_tokenizer

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
_TOOLS = ("[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
_MISTRAL_TOKENS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", *_TOOLS)
_MINISTRAL_TOKENS = (
    *(*_MISTRAL_TOKENS, "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
)
_ENDLESS = 1000000000000000019884624838656
"""How a tokenizer's config says that it knows no bound."""

_QWEN_GENERATION = {"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True}
_QWEN25_GENERATION = {**_QWEN_GENERATION, "repetition_penalty": 1.05, "temperature": 0.000001}
_QWEN3_GENERATION = {**_QWEN_GENERATION, "top_p": 0.8, "top_k": 20, "temperature": 0.7, "repetition_penalty": 1.0}
_MISTRAL_GENERATION = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
_MINISTRAL_GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "max_length": 262144, "pad_token_id": 11}

_QWEN25_PROCESSOR = {
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
_QWEN3_PROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
_QWEN3_VIDEOS = {
    **{key: value for key, value in _QWEN3_PROCESSOR.items() if key != "image_processor_type"},
    "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    "video_processor_type": "Qwen3VLVideoProcessor",
}
_PIXTRAL_PROCESSOR = {
    "image_processor": {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "PixtralImageProcessorFast",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "patch_size": 14,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": 1540},
    },
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
    "image_token": "[IMG]",
    "patch_size": 14,
    "processor_class": "PixtralProcessor",
    "spatial_merge_size": 2,
}

_QWEN_SETTINGS = {
    "add_bos_token": False,
    "add_prefix_space": False,
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"],
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "errors": "replace",
    "model_max_length": 131072,
    "pad_token": "<|endoftext|>",
    "split_special_tokens": False,
    "tokenizer_class": "Qwen2Tokenizer",
    "unk_token": None,
}
_LLAMA_SETTINGS = {
    "add_bos_token": True,
    "add_eos_token": False,
    "add_prefix_space": True,
    "additional_special_tokens": [],
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "legacy": False,
    "model_max_length": _ENDLESS,
    "pad_token": None,
    "sp_model_kwargs": {},
    "spaces_between_special_tokens": False,
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
    "use_default_system_prompt": False,
}
_TEKKEN_SETTINGS = {
    "additional_special_tokens": list(_MINISTRAL_TOKENS),
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "legacy": True,
    "model_max_length": _ENDLESS,
    "pad_token": "<pad>",
    "processor_class": "PixtralProcessor",
    "tokenizer_class": "TokenizersBackend",
    "unk_token": "<unk>",
    "use_default_system_prompt": False,
}


@attrs.frozen
class Shape:
    """A released checkpoint without its weights.

    Attributes:
        repository: where it is.
        config: its ``config.json``.
        generation: its ``generation_config.json``.
        template: of its chats.
        tokenizer: its ``tokenizer_config.json``.
        files: what else lies beside, by name.
    """

    repository: str
    config: dict[str, Any]
    generation: dict[str, Any]
    template: str
    tokenizer: dict[str, Any]
    files: dict[str, Any]

    @property
    def sees(self) -> bool:
        """Whether it describes pictures here."""
        return "preprocessor_config.json" in self.files


def _qwen(repository: str, config: dict[str, Any]) -> Shape:
    if config["model_type"] == "qwen2_5_vl":
        files = {"preprocessor_config.json": _QWEN25_PROCESSOR, "chat_template.json": {"chat_template": "unused"}}
        return Shape(repository, config, _QWEN25_GENERATION, templates.QWEN25, _QWEN_SETTINGS, files)
    files = {"preprocessor_config.json": _QWEN3_PROCESSOR, "video_preprocessor_config.json": _QWEN3_VIDEOS}
    return Shape(repository, config, _QWEN3_GENERATION, templates.QWEN3, _QWEN_SETTINGS, files)


def _ministral(repository: str, config: dict[str, Any]) -> Shape:
    tekken = {"config": {"pattern": _TEKKEN_SPLIT, "version": "v11"}, "vocab": [], "special_tokens": []}
    files = {"processor_config.json": _PIXTRAL_PROCESSOR, "tekken.json": tekken, "params.json": {"dim": 64}}
    return Shape(repository, config, _MINISTRAL_GENERATION, templates.MINISTRAL, _TEKKEN_SETTINGS, files)


SHAPES = {
    shape.repository: shape
    for shape in (
        _qwen("Qwen/Qwen2.5-VL-7B-Instruct", configs.QWEN25_CONFIG),
        _qwen("Qwen/Qwen3-VL-8B-Instruct", configs.QWEN3_8B_CONFIG),
        _qwen("Qwen/Qwen3-VL-4B-Instruct", configs.QWEN3_4B_CONFIG),
        _qwen("Qwen/Qwen3-VL-2B-Instruct", configs.QWEN3_2B_CONFIG),
        Shape(
            "mistralai/Mistral-7B-Instruct-v0.3",
            configs.MISTRAL_CONFIG,
            _MISTRAL_GENERATION,
            templates.MISTRAL,
            _LLAMA_SETTINGS,
            {"params.json": {"dim": 64}},
        ),
        _ministral("mistralai/Ministral-3-8B-Instruct-2512", configs.MINISTRAL_8B_CONFIG),
        _ministral("mistralai/Ministral-3-3B-Instruct-2512", configs.MINISTRAL_3B_CONFIG),
    )
}
"""By repository."""


def write(repository: str, folder: Path) -> Path:
    """Write a tiny checkpoint of a released one's shape."""
    shape = SHAPES[repository]
    tokenizer = _write_tokenizer(folder, shape)
    config = _shrink(shape.config, tokenizer, shape.sees)
    (folder / "config.json").write_text(json.dumps(config))
    _write_weights(folder)
    (folder / "config.json").write_text(json.dumps(config))  # as it was: saving a model writes its own
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    ids = {"eos_token_id": [end, pad], "bos_token_id": pad, "pad_token_id": pad} if shape.sees else {}
    (folder / "generation_config.json").write_text(json.dumps({**shape.generation, **ids}))
    for name, content in shape.files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


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
    """Write weights in 16 bits and several files, as released ones are."""
    prepare_torch()
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = transformers.AutoConfig.from_pretrained(folder)
    quantization = config.__dict__.pop("quantization_config", None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, config.architectures[0])(config)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="200KB")
    if quantization is not None:
        rewrite_weights(folder, quantise)


def rewrite_weights(folder: Path, change: Any) -> None:
    """Put what ``change`` makes of all weights of a checkpoint, a dictionary by name, in their place, in one file."""
    from safetensors.torch import load_file, save_file

    weights = {}
    for path in folder.glob("model*.safetensors*"):
        if path.suffix == ".safetensors":
            weights.update(load_file(path))
        path.unlink()
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


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


def _write_tokenizer(folder: Path, shape: Shape) -> Tokenizer:
    """Write a tokenizer that splits words as the released one, and its chat template where that one has it."""
    model = shape.config["model_type"]
    if model == "mistral":
        tokenizer = metaspace_tokenizer(_MISTRAL_TOKENS)
        tokenizer.normalizer = normalizers.Sequence([])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        tokenizer = byte_tokenizer(QWEN_TOKENS if shape.sees else _MINISTRAL_TOKENS)
        split = pre_tokenizers.Split(Regex(_QWEN_SPLIT if shape.sees else _TEKKEN_SPLIT), "isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
        if shape.sees:
            tokenizer.normalizer = normalizers.NFC()
    special = {token for name, token in shape.tokenizer.items() if name.endswith("_token") and isinstance(token, str)}
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in sorted(special)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = shape.tokenizer
    if model == "mistral3":
        (folder / "chat_template.jinja").write_text(shape.template)
    else:
        settings = {**settings, "chat_template": shape.template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer
