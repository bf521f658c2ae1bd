"""Load a checkpoint's weights for the engine that comes with the package. Imports torch and transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import PreTrainedModel

from aiservices.errors import ServiceError
from aiservices.handlers.text.checkpoint import Checkpoint, unreadable
from aiservices.handlers.text.options import GenerationOptions
from aiservices.handlers.text.own.backbone import Backbone, PictureBackbone
from aiservices.handlers.text.own.dequantised import source_of_weights
from aiservices.handlers.text.own.engine import OwnEngine
from aiservices.handlers.text.own.packed_linear import pack_weights
from aiservices.handlers.text.own.picture_reader import PictureReader
from aiservices.handlers.text.own.prefix_cache import PrefixCache
from aiservices.handlers.text.own.room import bound_of_cache
from aiservices.handlers.text.picture_size import PictureSize
from aiservices.handlers.torch_runtime import prepare_torch, resolve_dtype, take_device


def load_engine(
    checkpoint: Checkpoint, device: str, options: GenerationOptions, pictures: PictureSize | None
) -> OwnEngine:
    """Load the weights and make the engine. Runs on the model's thread.

    Args:
        checkpoint: whose weights.
        device: where they go.
        options: type of the weights, threads, attention, size of the pieces in which prompts are read.
        pictures: how large pictures may be; None if there will be none, and a vision tower is dropped.

    Raises:
        ServiceError: weights are missing, or are of a kind that this engine cannot run.
    """
    prepare_torch(options.cpu_threads)
    take_device(device)
    model = load_weights(checkpoint, device, options)
    if pictures is None:
        _drop_vision(model)
    parts: Any = model
    pack_weights(model, parts.get_decoder(), device, options.weights)
    reader = None
    if pictures is not None:
        reader = PictureReader(model, pictures, device)
        backbone: Backbone = PictureBackbone(model, device, options.picture_cache_mib << 20)
    else:
        backbone = Backbone(model, device)
    if device.startswith("cuda") and options.cuda_graphs:
        backbone.pad_steps(graphs=True)
    chat = checkpoint.chat
    return OwnEngine(
        backbone,
        chat.backend,
        checkpoint.stop_ids,
        max(options.prefill_chunk_tokens, reader.most_tokens if reader else 0),  # a picture is read in one piece
        reader,
        cache_tokens=bound_of_cache(backbone, options.cache_tokens),
        prefixes=PrefixCache() if options.prefix_caching else None,
    )


def load_weights(checkpoint: Checkpoint, device: str, options: GenerationOptions) -> PreTrainedModel:
    """Load the model, in evaluation mode, on its device.

    Raises:
        ServiceError: weights are missing, or cannot be read.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    auto_class: Any = getattr(transformers, checkpoint.auto_class)
    model_class = auto_class._model_mapping[type(checkpoint.config)]
    dtype = resolve_dtype(options.dtype, device)
    try:
        model, report = model_class.from_pretrained(
            **source_of_weights(checkpoint, dtype),
            dtype=dtype,
            attn_implementation=options.attn_implementation,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(error, checkpoint.folder) from error
    _check_weights(report)
    loaded: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return loaded


def _check_weights(report: Mapping[str, Any]) -> None:
    """Refuse what transformers fills with random numbers and only logs."""
    missing = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    if missing:
        raise ServiceError(f"the checkpoint lacks {len(missing)} weights that fit, {missing[0]} among them")


def _drop_vision(model: Any) -> None:
    """Free the vision tower of a model that will see nothing."""
    if model.config.model_type == "mistral3":
        model.model.vision_tower = model.model.multi_modal_projector = None
