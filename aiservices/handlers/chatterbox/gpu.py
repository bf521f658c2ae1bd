"""What torch is told before it computes on a GPU. Imports torch: import it inside ``load``."""

from __future__ import annotations

import torch


def prepare_gpu(device: str) -> None:
    """Set torch up for a GPU, on the model's thread; nothing is changed where there is none.

    The switches hold for the whole process. TF32 rounds the factors of float32 products to 10 bits behind the point and
    is several times as fast; convolutions have it by default, and the other services compute in bfloat16 there, which
    it does not touch. cuDNN's attention plans anew for each number of keys, 23 to 37 ms on an H100, and T3 has another
    number each step.

    Args:
        device: as torch names it, ``cuda``, ``cuda:1`` or ``cpu``.
    """
    if not device.startswith("cuda"):
        return
    if ":" in device:
        torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cuda.enable_cudnn_sdp(False)
