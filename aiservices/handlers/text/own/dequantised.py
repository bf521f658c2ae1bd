"""Load checkpoints whose weights have eight bits. Imports torch: import it inside ``load``.

transformers would load them through accelerate and compute with a kernel from a hub. Here they become what they stand
for, in the type that the service computes in: twice the memory, no kernel, nothing to download.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from aiservices.errors import ServiceError
from aiservices.handlers.text.checkpoint import Checkpoint

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALE = "_scale_inv"
"""Behind a weight's name: the name of what it is to be multiplied by."""
_OF_ACTIVATIONS = "activation_scale"


def source_of_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Any]:
    """Say what transformers' ``from_pretrained`` is to read: the folder, or FP8 weights made into ``dtype`` here.

    Raises:
        ServiceError: the weights are quantised in a way that this engine does not know.
    """
    quantization = getattr(checkpoint.config, "quantization_config", None)
    if quantization is None:
        return {"pretrained_model_name_or_path": checkpoint.folder, "config": checkpoint.config}
    method = _setting(quantization, "quant_method")
    if method != "fp8":
        raise ServiceError(
            f"the checkpoint's weights are quantised by {method}, which the engine of the package does not take: take "
            'a repository with 16-bit weights, or options.engine = "vllm"'
        )
    config = copy.deepcopy(checkpoint.config)
    del config.quantization_config
    blocks = _setting(quantization, "weight_block_size")
    weights = dict(_read(checkpoint.folder, dtype, blocks))
    return {"pretrained_model_name_or_path": None, "config": config, "state_dict": weights}


def _setting(quantization: Any, name: str) -> Any:
    return quantization.get(name) if isinstance(quantization, dict) else getattr(quantization, name, None)


def _read(folder: Path, dtype: torch.dtype, blocks: Sequence[int] | None) -> Iterator[tuple[str, torch.Tensor]]:
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for path in sorted(folder.glob("model*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt"))
            files.update(dict.fromkeys(file.keys(), file))
        for name, file in files.items():
            if name.endswith((_SCALE, _OF_ACTIVATIONS)):
                continue
            tensor = file.get_tensor(name)
            if tensor.dtype in _FP8:
                scale = name + _SCALE
                if scale not in files:
                    raise ServiceError(f"the checkpoint lacks {scale}")
                tensor = dequantise(tensor, files[scale].get_tensor(scale), blocks).to(dtype)
            yield name, tensor


def dequantise(weight: torch.Tensor, scale: torch.Tensor, blocks: Sequence[int] | None = None) -> torch.Tensor:
    """Multiply an FP8 weight by its scale.

    Args:
        weight: ``[out, in]``.
        scale: of the whole weight, ``[]`` or ``[1]``; of each row, ``[out, 1]``; or of each block.
        blocks: rows and columns of a block; None without blocks.

    Returns:
        float32, ``[out, in]``.
    """
    scale = scale.float()
    if blocks is not None:
        rows, columns = weight.shape
        scale = scale.repeat_interleave(blocks[0], 0)[:rows].repeat_interleave(blocks[1], 1)[:, :columns]
    return weight.float() * scale
