"""Load checkpoints whose weights have eight bits. Imports torch: import it inside ``load``.

transformers would load them through accelerate and compute with a kernel from a hub. Here they become what they stand
for, in the type that the service computes in: twice the memory, no kernel, nothing to download.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
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
    return {
        "pretrained_model_name_or_path": None,
        "config": config,
        "state_dict": dict(_weights(checkpoint.folder, dtype, blocks)),
    }


def _setting(quantization: Any, name: str) -> Any:
    return quantization.get(name) if isinstance(quantization, dict) else getattr(quantization, name, None)


@attrs.frozen(eq=False)
class _Weight:
    """A weight in a file, read when transformers takes all of it with ``[...]``, as it takes safetensors' own slices.

    So no more than one model's worth of memory is needed.
    """

    file: Any
    name: str
    dtype: torch.dtype
    blocks: Sequence[int] | None
    scale_file: Any

    def __getitem__(self, _all: Any) -> torch.Tensor:
        weight: torch.Tensor = self.file.get_tensor(self.name)
        if weight.dtype not in _FP8:
            return weight
        scale = self.scale_file.get_tensor(self.name + _SCALE)
        return dequantise(weight, scale, self.dtype, self.blocks)


def _weights(folder: Path, dtype: torch.dtype, blocks: Sequence[int] | None) -> Iterator[tuple[str, _Weight]]:
    files: dict[str, Any] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        file: Any = safe_open(path, framework="pt")
        files.update(dict.fromkeys(file.keys(), file))
    for name, file in files.items():
        if name.endswith((_SCALE, _OF_ACTIVATIONS)):
            continue
        scale = name + _SCALE
        if scale not in files and file.get_slice(name).get_dtype().startswith("F8"):
            raise ServiceError(f"the checkpoint lacks {scale}")
        yield name, _Weight(file, name, dtype, blocks, files.get(scale))


def dequantise(
    weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, blocks: Sequence[int] | None = None
) -> torch.Tensor:
    """Multiply an FP8 weight by its scale.

    Args:
        weight: ``[out, in]``.
        scale: of the whole weight, ``[]`` or ``[1]``; of each row, ``[out, 1]``; or of each block.
        dtype: of what comes out.
        blocks: rows and columns of a block; None without blocks.

    Returns:
        ``[out, in]``.
    """
    if scale.numel() == 1:  # without a copy in float32; the product is rounded once all the same
        return weight.to(dtype).mul_(scale.float().reshape(()))
    if blocks is not None:
        rows, columns = weight.shape
        scale = scale.repeat_interleave(blocks[0], 0)[:rows].repeat_interleave(blocks[1], 1)[:, :columns]
    return weight.float().mul_(scale.float()).to(dtype)
