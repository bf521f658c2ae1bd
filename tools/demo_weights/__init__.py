"""Train the demo weights: draw product pictures, write texts about them, train both tiny models, evaluate them."""

from aiservices.handlers.torch_runtime import prepare_torch

prepare_torch()  # before any module here imports transformers, which a torchaudio of another build would break
