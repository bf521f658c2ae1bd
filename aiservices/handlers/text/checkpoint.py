"""What a checkpoint of transformers says of its model, read from a folder; its weights are the engines' affair.

torch and transformers are imported when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from aiservices.errors import ServiceError
from aiservices.handlers.text.chat import Chat
from aiservices.handlers.text.generation import Sampling
from aiservices.handlers.torch_runtime import import_lock, prepare_torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig


_MISTRALS = frozenset({"mistral", "ministral3", "mistral3"})
_PRESENCE_PENALTIES = {"qwen3_vl": 1.5}
"""What a model's card asks for and no file of a checkpoint can: Qwen3-VL's, "Generation Hyperparameters", VL."""
_COLD = 0.01
"""Temperatures up to it are none: Qwen2.5-VL asks for 0.000001."""


@attrs.frozen(eq=False)
class Checkpoint:
    """A model without its weights.

    Attributes:
        folder: where it lies.
        config: its ``config.json``.
        auto_class: name of transformers' Auto class for it.
        chat: its tokenizer and chat template.
        stop_ids: tokens that end an answer.
        sampling: what its own generation_config asks for where a caller asks for nothing.
    """

    folder: Path
    config: PretrainedConfig
    auto_class: str
    chat: Chat
    stop_ids: frozenset[int]
    sampling: Sampling


def read_checkpoint(model_dir: Path | None, auto_classes: Mapping[str, str]) -> Checkpoint:
    """Read everything but the weights. Runs on the model's thread.

    Args:
        model_dir: folder with ``config.json``, safetensors weights and ``tokenizer.json``.
        auto_classes: transformers' Auto class for each ``model_type`` that the service takes.

    Raises:
        ServiceError: the folder does not hold such a model.
    """
    if model_dir is None:
        raise ServiceError("this service needs a model: set `model` to a folder or a hub id")
    prepare_torch()
    with import_lock:
        from transformers import AutoConfig, AutoTokenizer
    try:
        config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True)
        auto_class = _auto_class(config.model_type, auto_classes)
        tokenizer = AutoTokenizer.from_pretrained(
            model_dir, trust_remote_code=False, local_files_only=True, **_tokenizer_arguments(config.model_type)
        )
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(error, model_dir) from error
    generation = _generation_config(model_dir, config)
    return Checkpoint(
        folder=model_dir,
        config=config,
        auto_class=auto_class,
        chat=Chat(tokenizer),
        stop_ids=_stop_ids(generation.eos_token_id, tokenizer.eos_token_id),
        sampling=_sampling(generation, config.model_type),
    )


def unreadable(error: Exception, model_dir: Path) -> ServiceError:
    """Make the error of a library one that names no path."""
    reason = str(error).replace(str(model_dir), "the folder").partition("\n")[0]
    return ServiceError(f"the model cannot be loaded: {reason}")


def _auto_class(model_type: str, auto_classes: Mapping[str, str]) -> str:
    if model_type not in auto_classes:
        raise ServiceError(f"this service takes {', '.join(auto_classes)} models, the folder holds a {model_type} one")
    return auto_classes[model_type]


def _generation_config(model_dir: Path, config: PretrainedConfig) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(model_dir, local_files_only=True)
    except OSError:  # the folder has none
        return GenerationConfig.from_model_config(config)


def _tokenizer_arguments(model_type: str) -> dict[str, Any]:
    """What keeps a Mistral's tokenizer the one in ``tokenizer.json``."""
    if model_type not in _MISTRALS:
        return {}
    # With mistral_common installed, tekken.json beside it would be taken by a class that is no fast tokenizer. And the
    # other splitting of words that transformers proposes for older checkpoints is not that of Mistral 7B v0.3.
    return {"mistral_format": False, "fix_mistral_regex": False}


def _sampling(generation: Any, model_type: str) -> Sampling:
    """Read what a checkpoint asks for; what it asks for a temperature next to nothing is the likeliest token."""
    sampled = bool(generation.do_sample) and (generation.temperature or 1.0) > _COLD
    return Sampling(
        temperature=(generation.temperature or 1.0) if sampled else 0.0,
        top_p=(generation.top_p or 1.0) if sampled else 1.0,
        top_k=(generation.top_k or 0) if sampled else 0,
        repetition_penalty=generation.repetition_penalty or 1.0,
        presence_penalty=_PRESENCE_PENALTIES.get(model_type, 0.0) if sampled else 0.0,
    )


def _stop_ids(*eos: int | list[int] | None) -> frozenset[int]:
    ids: set[int] = set()
    for entry in eos:
        if entry is not None:
            ids.update([entry] if isinstance(entry, int) else entry)
    return frozenset(ids)
