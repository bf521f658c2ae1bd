"""What torch is told before it computes on a GPU. Imports torch: import it inside ``load``."""

from __future__ import annotations

import torch

from aiservices.handlers.torch_runtime import take_device


def prepare_gpu(device: str) -> None:
    """Give the model's thread its GPU and let matrices be multiplied in TF32; nothing is changed where there is none.

    TF32 rounds the factors of float32 products to 10 bits behind the point and is several times as fast; convolutions
    have it by default. The switch holds for the whole process, but the other services compute in bfloat16 on a GPU,
    which it does not touch.

    Args:
        device: as torch names it, ``cuda``, ``cuda:1`` or ``cpu``.
    """
    take_device(device)
    if device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = True
