"""Attention of a Qwen-VL vision tower, all windows of one length in one go. Imports torch: import it inside ``load``.

transformers calls SDPA once a window and layer where flash attention is not installed: some 2 270 small calls for a
picture of a megapixel. Most windows have the same length, so they are the rows of one call.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


def batch_windows(model: nn.Module) -> None:
    """Replace the attention of every block of a vision tower under SDPA; other ones are left alone."""
    tower: Any = model
    if tower.config._attn_implementation != "sdpa":
        return
    windows = _Windows()
    for block in tower.blocks:
        block.attn = WindowAttention(block.attn, windows)


class _Windows:
    """Where the patches of windows of each length stand; worked out once for all layers that have the same windows."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def places(self, bounds: torch.Tensor) -> list[torch.Tensor]:
        """Group windows.

        Args:
            bounds: where each begins and the last one ends, ``[windows + 1]``.

        Returns:
            For each length the patches of such windows, ``[windows, length]``.
        """
        known = self._known.get(id(bounds))
        if known is None or known[0] is not bounds:
            if len(self._known) > 1:  # a tower has two kinds of layers: windows, and the whole picture
                self._known.clear()
            known = self._known[id(bounds)] = bounds, _group(bounds)
        return known[1]


def _group(bounds: torch.Tensor) -> list[torch.Tensor]:
    starts, lengths = bounds[:-1], bounds[1:] - bounds[:-1]
    return [
        starts[lengths == length][:, None] + torch.arange(length, device=bounds.device)
        for length in sorted(set(lengths.tolist()) - {0})
    ]


class WindowAttention(nn.Module):
    """What transformers' vision attention computes, with one call for all windows of a length.

    Args:
        attention: of the tower's block; its weights are used.
        windows: shared by the blocks.
    """

    def __init__(self, attention: Any, windows: _Windows) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self._heads, self._scaling = attention.num_heads, attention.scaling
        self._rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
        self._windows = windows

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> torch.Tensor:
        """Attend within windows.

        Args:
            hidden_states: patches, ``[patches, width]``.
            cu_seqlens: where each window begins and the last one ends, ``[windows + 1]``.
            position_embeddings: cosines and sines, ``[patches, head_dim]`` each.

        Returns:
            As ``hidden_states``.
        """
        patches = len(hidden_states)
        query, key, value = self.qkv(hidden_states).view(patches, 3, self._heads, -1).unbind(1)
        query, key = self._rotate(query, key, *position_embeddings)
        groups = self._windows.places(cu_seqlens)
        seen = torch.empty_like(value, memory_format=torch.contiguous_format)
        for places in groups:
            of_group = [states[places].transpose(1, 2) for states in (query, key, value)]
            attended = scaled_dot_product_attention(of_group[0], of_group[1], of_group[2], scale=self._scaling)
            seen[places] = attended.transpose(1, 2)
        out: torch.Tensor = self.proj(seen.view(patches, -1))
        return out
