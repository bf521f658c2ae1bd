"""Linear layers of a CPU whose weights lie as oneDNN multiplies them. Imports torch: import it inside ``load``.

A step of a few rows reads every weight once and computes little, so it is as fast as memory gives the weights. torch's
own linear copies them into blocks at every call; here they are copied once, at load, and the plain ones are freed. The
operators are those that ``torch.compile`` puts in place of a linear with constant weights (torch/_inductor/fx_passes/
mkldnn_fusion.py and quantization.py, torch 2.13).

Layers that read the same input become one with a longer weight: fewer calls, and longer runs of memory.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from aiservices.errors import ConfigError

WeightsName = Literal["full", "int8"]
"""How linear layers keep their weights: in the model's type, or in eight bits."""

_ROWS = 8
"""Rows for which oneDNN chooses the layout: that of 8 served 1 to 256 rows within a tenth of the best when measured."""
_LEAST_WEIGHTS = 1 << 19
"""Smaller layers stay plain in float32: a call of oneDNN's operator takes 13 microseconds more than torch's own, which
one row gains back from half a million weights on."""
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that transformers' attention and feed-forward modules give the same input."""


def pack_weights(model: nn.Module, decoder: nn.Module, device: str, weights: WeightsName = "full") -> None:
    """Replace the linear layers of a model on a CPU by packed ones, one after the other: only one is held twice.

    Does nothing where the device is no CPU, or oneDNN does not know the model's type there; small layers in float32
    stay as they are. Embeddings that share their weight with the head keep the plain one.

    Args:
        model: changed in place.
        decoder: the part of it whose layers may be in eight bits; the head and a vision tower never are.
        device: where the model lives.
        weights: how to keep those of the decoder.

    Raises:
        ConfigError: eight bits are asked for where they cannot be had.
    """
    onednn: Any = torch.backends.mkldnn
    able = device.startswith("cpu") and onednn.is_available()
    if weights == "int8" and not able:
        raise ConfigError("options.weights: int8 needs a CPU and a torch with oneDNN")
    if not able:
        return
    _pack(decoder, weights)
    _pack(model, "full")


def _pack(model: nn.Module, weights: WeightsName) -> None:
    # Only modules that hold layers are listed, so that a layer goes once it is replaced.
    for module in [module for module in model.modules() if type(module) is not nn.Linear]:
        for names in _TOGETHER:
            _join(module, names, weights)
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear:
                setattr(module, name, _packed([layer], weights) or layer)


def _join(module: nn.Module, names: tuple[str, ...], weights: WeightsName) -> None:
    layers = [layer for name in names if type(layer := getattr(module, name, None)) is nn.Linear]
    if len(layers) < len(names) or len({layer.bias is None for layer in layers}) > 1:
        return
    whole = _packed(layers, weights)
    if whole is not None:
        shared = _Shared(whole, [layer.out_features for layer in layers])
        for number, name in enumerate(names):
            setattr(module, name, _Part(shared, number))


def _packed(layers: list[nn.Linear], weights: WeightsName) -> nn.Module | None:
    """Make one layer of these; None where oneDNN gains nothing here."""
    weight = torch.cat([layer.weight for layer in layers]) if len(layers) > 1 else layers[0].weight
    bias = None
    if layers[0].bias is not None:
        bias = torch.cat([layer.bias for layer in layers])
    if weights == "int8":
        return Int8Linear(weight, bias)
    return PackedLinear(weight, bias) if _gains(weight) else None


def _gains(weight: torch.Tensor) -> bool:
    known: Any = torch.ops.mkldnn
    dtype = weight.dtype
    if dtype is torch.bfloat16:
        return bool(known._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(known._is_mkldnn_fp16_supported())
    return dtype is torch.float32 and weight.numel() >= _LEAST_WEIGHTS


class PackedLinear(nn.Module):
    """A linear layer in its own type.

    Args:
        weight: ``[out, in]``; not kept.
        bias: ``[out]``.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
        self._bias = None if bias is None else bias.detach()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Take ``[..., in]`` to ``[..., out]``."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "none", [], "")
        return out


class Int8Linear(nn.Module):
    """A linear layer of eight bits: weights scaled by output channel, inputs by token, sums exact in 32 bits.

    Scaling each token by itself keeps a row's answer independent of the rows beside it.

    Args:
        weight: ``[out, in]``; not kept.
        bias: ``[out]``.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        plain = weight.detach().float()
        self._scale = plain.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny).div_(127)
        whole = (plain / self._scale[:, None]).round_().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(whole, None)
        self._zero = torch.zeros(len(whole), dtype=torch.int32)
        self._bias = None if bias is None else bias.detach().float()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Take ``[..., in]`` to ``[..., out]``."""
        rows = states.reshape(-1, self.in_features).float()
        scale = rows.abs().amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny).div_(127)
        # Unsigned with its zero at 128: oneDNN has a slow path only for signed inputs on AVX-512.
        whole = (rows / scale).round_().add_(128).to(torch.uint8)
        out: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            whole, 1.0, 128, self._weight, self._scale, self._zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        out.mul_(scale)
        if self._bias is not None:
            out += self._bias
        return out.to(states.dtype).view(*states.shape[:-1], self.out_features)


class _Shared:
    """A layer whose output several modules take parts of, computed when the first of them is called with an input."""

    def __init__(self, whole: nn.Module, sizes: list[int]) -> None:
        self.whole, self._sizes = whole, sizes
        self._input: torch.Tensor | None = None
        self._parts: dict[int, torch.Tensor] = {}

    def take(self, states: torch.Tensor, number: int) -> torch.Tensor:
        if self._input is not states or number not in self._parts:
            self._input = states  # held, so that no other tensor can be taken for it
            self._parts = dict(enumerate(self.whole(states).split(self._sizes, dim=-1)))
        part = self._parts.pop(number)
        if not self._parts:
            self._input = None
        return part


class _Part(nn.Module):
    """One of the layers that were joined."""

    def __init__(self, shared: _Shared, number: int) -> None:
        super().__init__()
        self._shared, self._number = shared, number

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self._shared.take(states, self._number)
