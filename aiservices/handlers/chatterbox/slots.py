"""Keys and values of the rows that T3 decodes together. Imports torch: import it inside ``load``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from aiservices.handlers.chatterbox.stacks import Stack


class Slots:
    """Keys and values of the rows that decode together: one slot a row, its tokens from column 0 on.

    Args:
        stack: whose keys and values they are.
        device: where they live.
        dtype: of the keys and values.
        alignment_heads: by layer, heads whose attention is wanted as well (the alignment of a multilingual model).
        fixed: slots and columns that are taken once and never change place, as CUDA graphs need it; None to grow.
    """

    def __init__(
        self,
        stack: Stack,
        device: str,
        dtype: torch.dtype,
        alignment_heads: Mapping[int, Sequence[int]] | None = None,
        fixed: tuple[int, int] | None = None,
    ) -> None:
        self._stack, self._device, self.dtype = stack, device, dtype
        self._alignment_heads = dict(alignment_heads or {})
        self._fixed = fixed
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.lengths: list[int] = []
        self.attention: list[torch.Tensor] = []
        """After a step: attention of the alignment heads, ``[rows, columns]`` each."""
        if fixed is not None:
            self._resize(*fixed)

    def prefill(self, embeds: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """Read prompts of different lengths in one pass; their rows take the next slots.

        Args:
            embeds: one prompt a row, ``[tokens, width]``.

        Returns:
            The hidden state of each prompt's last token, ``[rows, width]``; and for each row the alignment heads'
            attention of that token, ``[tokens]`` each.
        """
        lengths = [len(row) for row in embeds]
        first, widest = len(self.lengths), max(lengths)
        self._fit(first + len(embeds), widest + 1)
        hidden = torch.nn.utils.rnn.pad_sequence(list(embeds), batch_first=True)
        positions = torch.arange(widest, device=self._device).expand(len(embeds), -1)
        attention: list[list[torch.Tensor]] = [[] for _ in embeds]

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            self.keys[layer][first : first + len(embeds), :, :widest] = key
            self.values[layer][first : first + len(embeds), :, :widest] = value
            for head in self._alignment_heads.get(layer, ()):
                for row, length in enumerate(lengths):
                    scores = (key[row, head, :length] @ query[row, head, length - 1]).float()
                    attention[row].append((scores * self._stack.head_dim**-0.5).softmax(dim=-1))
            # Padding stands on the right, where no token of a row looks.
            return scaled_dot_product_attention(query, key, value, is_causal=True)

        out = self._stack.forward(hidden, positions, attend)
        self.lengths += lengths
        return torch.stack([out[row, length - 1] for row, length in enumerate(lengths)]), attention

    def decode(self, hidden: torch.Tensor, positions: torch.Tensor, width: int) -> torch.Tensor:
        """Run one token a slot; only tensors of fixed shapes, so that it can be captured.

        Args:
            hidden: the new tokens, ``[slots, width]``.
            positions: column and position of each, ``[slots]``.
            width: columns to look at, those of the new tokens included.

        Returns:
            The last hidden states, ``[slots, width]``.
        """
        count = len(hidden)
        slots = torch.arange(count, device=self._device)
        mask = torch.arange(width, device=self._device) <= positions[:, None]
        self.attention = []

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            self.keys[layer][slots, :, positions] = key[:, :, 0]
            self.values[layer][slots, :, positions] = value[:, :, 0]
            keys, values = self.keys[layer][:count, :, :width], self.values[layer][:count, :, :width]
            for head in self._alignment_heads.get(layer, ()):
                scores = (keys[:, head] @ query[:, head, 0, :, None])[..., 0].float() * self._stack.head_dim**-0.5
                self.attention.append(scores.masked_fill(~mask, float("-inf")).softmax(dim=-1))
            return scaled_dot_product_attention(query, keys, values, attn_mask=mask[:, None, None])

        return self._stack.forward(hidden[:, None], positions[:, None], attend)[:, 0]

    def leave(self, slot: int, *, poisoned: bool = False) -> None:
        """Free a slot; the row of the last slot moves there.

        Args:
            slot: which one.
            poisoned: its states may hold NaN, which reach the next rows through masked columns, so they are wiped.
        """
        last = len(self.lengths) - 1
        moved = self.lengths.pop()
        for states in (*self.keys, *self.values):
            if poisoned:
                states[slot].zero_()
            if slot != last:
                states[slot, :, :moved] = states[last, :, :moved]
        if slot != last:
            self.lengths[slot] = moved

    def clear(self) -> None:
        """Forget every row, and the memory they hold unless it is fixed."""
        self.lengths = []
        self.attention = []
        if self._fixed is None:
            self.keys, self.values = [], []
        else:
            for states in (*self.keys, *self.values):
                states.zero_()

    def make_room(self) -> None:
        """Have a column for one more token of every row."""
        self._fit(len(self.lengths), max(self.lengths) + 1)

    def _fit(self, slots: int, columns: int) -> None:
        has = self.keys[0].shape if self.keys else (0, 0, 0, 0)
        if slots <= has[0] and columns <= has[2]:
            return
        if self._fixed is not None:
            raise ValueError(f"{slots} rows of {columns} tokens do not fit into {self._fixed}")
        grown = -(-max(columns, has[2] + has[2] // 2 if columns > has[2] else has[2]) // 64) * 64
        self._resize(1 << (max(slots, has[0]) - 1).bit_length(), grown)

    def _resize(self, slots: int, columns: int) -> None:
        """Replace the buffers, keeping what they hold."""
        held, used = len(self.lengths), max(self.lengths, default=0)
        for name in ("keys", "values"):
            old: list[torch.Tensor] = getattr(self, name)
            new = []
            for layer in range(self._stack.layers):
                # Zeros, because masked columns are multiplied too and fresh memory may hold NaN.
                shape = (slots, self._stack.heads, columns, self._stack.head_dim)
                buffer = torch.zeros(shape, dtype=self.dtype, device=self._device)
                if held:
                    buffer[:held, :, :used] = old[layer][:held, :, :used]
                    old[layer] = buffer  # one layer's old buffer at a time is held twice
                new.append(buffer)
            setattr(self, name, new)
