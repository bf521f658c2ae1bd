"""The transformer under T3, one layer after the other, over keys and values that :mod:`.slots` keeps.

Imports torch: import it inside ``load``. The weights are those of transformers' ``LlamaModel`` and ``GPT2Model``; what
is left out is all that a step does not need: mask building, cache objects, hidden states of every layer.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import torch

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From a layer, queries, keys and values, each ``[rows, heads, tokens, head_dim]``, to what was attended to."""


class Stack(abc.ABC):
    """A transformer's layers.

    Args:
        model: the library's ``tfmr``.

    Attributes:
        layers: how many.
        heads: of each layer.
        head_dim: width of a head.
    """

    layers: int
    heads: int
    head_dim: int

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers = int(model.config.num_hidden_layers)
        self.heads = int(model.config.num_attention_heads)

    @abc.abstractmethod
    def forward(self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Run the layers.

        Args:
            hidden: embedded tokens, ``[rows, tokens, width]``.
            positions: of the tokens, ``[rows, tokens]``.
            attend: does the attention and keeps keys and values.

        Returns:
            The normalised last hidden states, shaped as ``hidden``.
        """

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        rows, tokens, _ = states.shape
        return states.view(rows, tokens, self.heads, self.head_dim).transpose(1, 2)


class LlamaStack(Stack):
    """Llama's layers with as many key heads as heads, which is what T3 has."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.head_dim = int(model.layers[0].self_attn.head_dim)

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Run the layers; the positions go in by rotation."""
        cos, sin = (part[:, None] for part in self.model.rotary_emb(hidden, positions))
        for number, layer in enumerate(self.model.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            query, key, value = (
                self._heads(projection(normed)) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            seen = attend(number, _rotated(query, cos, sin), _rotated(key, cos, sin), value)
            hidden = hidden + attention.o_proj(_flat(seen))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        out: torch.Tensor = self.model.norm(hidden)
        return out


class Gpt2Stack(Stack):
    """GPT-2's layers, on which Turbo stands."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.head_dim = int(model.config.hidden_size) // self.heads

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Run the layers; the positions are added at the bottom."""
        hidden = hidden + self.model.wpe(positions)
        for number, block in enumerate(self.model.h):
            parts = block.attn.c_attn(block.ln_1(hidden)).chunk(3, dim=-1)
            query, key, value = (self._heads(part) for part in parts)
            hidden = hidden + block.attn.c_proj(_flat(attend(number, query, key, value)))
            hidden = hidden + block.mlp(block.ln_2(hidden))
        out: torch.Tensor = self.model.ln_f(hidden)
        return out


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su et al., RoFormer, 2021), halves side by side as transformers lays them out."""
    low, high = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-high, low), dim=-1) * sin


def _flat(states: torch.Tensor) -> torch.Tensor:
    rows, _, tokens, _ = states.shape
    return states.transpose(1, 2).reshape(rows, tokens, -1)
