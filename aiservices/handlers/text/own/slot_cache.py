"""The keys and values of the rows that decode together. Imports torch and transformers: import it inside ``load``.

``DynamicCache`` grows by concatenation, which copies everything at every token (50 ms a layer for 16 rows of 800
tokens on one CPU thread, against 20 microseconds for a write in place). Here each row has a slot in one buffer per
layer and its tokens stand from column 0 on; a row joins, grows and leaves without touching the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_COLUMN_STEP = 64
_PADDED_STEP = 256
_PADDED_SLOTS = 8


class SlotCache(Cache):
    """A cache of ``len(lengths)`` rows; the layout of a layer is ``[slots, heads, columns, head_dim]``.

    Args:
        device: where the rows live.
        limit: tokens that the buffers have room for at most, slots times columns; None for no bound.
        padded: whether steps come in few shapes, their rows a power of two and their columns a multiple of 256, and
            the buffers stay where they are as long as they are large enough.
    """

    lengths: list[int]
    """How many tokens each slot holds."""
    version: int
    """Changes when the buffers do."""
    _own_layers: list[SlotLayer]
    _index: tuple[torch.Tensor, torch.Tensor] | None

    def __init__(self, device: str, limit: int | None = None, *, padded: bool = False) -> None:
        super().__init__(layers=[])
        self._device, self._padded = device, padded
        self.limit = limit
        self.version = 0
        self.clear()

    @property
    def width(self) -> int:
        """Columns that a decoding step reads, that of the new token included."""
        exact = max(self.lengths) + 1
        return min(_round_up(exact, _PADDED_STEP), self._columns) if self._padded else exact

    @property
    def rows(self) -> int:
        """Rows that a decoding step has, those that pad it included."""
        count = len(self.lengths)
        return min(1 << (count - 1).bit_length(), self._slots) if self._padded else count

    def has_room(self, lengths: Sequence[int] = (), spare: int = 1) -> bool:
        """Tell whether rows fit in beside those that are there.

        Args:
            lengths: tokens of each row that would join.
            spare: tokens that each row is to have room for beside those it holds.
        """
        return self.limit is None or self.needed(lengths, spare) <= self.limit

    def needed(self, lengths: Sequence[int] = (), spare: int = 1) -> int:
        """Count the tokens that the buffers need room for at least, with these rows beside those that are there."""
        rows = [*self.lengths, *lengths]
        return len(rows) * _round_up(max(rows) + spare) if rows else 0

    def join(self, prefilled: DynamicCache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Take rows over from a right-padded prefill.

        Args:
            prefilled: holds ``[n, heads, columns, head_dim]`` per layer.
            rows: which of its n rows.
            lengths: real tokens of each of those rows.
        """
        first, last = len(self.lengths), len(self.lengths) + len(rows)
        widest = max(lengths)
        sources: list[Any] = prefilled.layers
        if not self._own_layers:
            self._own_layers.extend(SlotLayer(self) for _ in sources)
        self._fit(last, max([widest, *self.lengths]) + 1, sources)
        for layer, source in zip(self._own_layers, sources, strict=True):
            for target, states in ((layer.keys, source.keys), (layer.values, source.values)):
                taken = states if len(rows) == states.shape[0] else states[list(rows)]
                target[first:last, :, :widest] = taken[:, :, :widest]
        self.lengths.extend(lengths)
        self._index = None

    def leave(self, slot: int, *, poisoned: bool = False) -> None:
        """Free a slot; the row of the last slot moves there.

        Args:
            slot: which one.
            poisoned: its states may hold NaN, which reach other rows through masked columns (0 * NaN is NaN), so
                they are wiped.
        """
        last = len(self.lengths) - 1
        moved = self.lengths.pop()
        for layer in self._own_layers:
            for states in (layer.keys, layer.values):
                if poisoned:
                    states[slot].zero_()
                if slot != last:
                    states[slot, :, :moved] = states[last, :, :moved]
        if slot != last:
            self.lengths[slot] = moved
        self._index = None
        if not self.lengths and not self._padded:
            self.clear()

    def clear(self) -> None:
        """Forget every row and the memory they hold."""
        self.lengths = []
        self._own_layers = []
        self.layers = self._own_layers  # type: ignore[assignment]  # a list of one subclass, which only this class changes
        self._slots = self._columns = 0
        self._index = None
        self._places: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.version += 1

    def begin_step(self) -> torch.Tensor:
        """Make room for one more token per row.

        Returns:
            The column that each row's new token takes, which is also its position, as ``[rows]``.
        """
        self._fit(len(self.lengths), max(self.lengths) + 1)
        return self.index[1]

    def end_step(self) -> None:
        """Count the token that the step wrote for every row."""
        self.lengths = [length + 1 for length in self.lengths]
        if self._index is not None:
            self._index[1][: len(self.lengths)].add_(1)

    @property
    def index(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Slot and column of each row's new token, each ``[rows]``; padding rows write to column 0 of free slots."""
        if self._index is None:
            rows = self.rows
            columns = torch.tensor([*self.lengths, *[0] * (rows - len(self.lengths))], device=self._device)
            if not self._padded:
                self._index = torch.arange(rows, device=self._device), columns
            elif rows in self._places:
                self._index = self._places[rows]
                self._index[1].copy_(columns)
            else:
                self._index = self._places[rows] = torch.arange(rows, device=self._device), columns
        return self._index

    def mask(self) -> torch.Tensor:
        """Which columns each row may look at, ``[rows, 1, 1, width]``.

        Made for rows of equal length too: without a mask transformers has SDPA repeat the heads, which takes six times
        as long on a CPU in bfloat16 as the heads side by side that it makes beside a mask.
        """
        columns = torch.arange(self.width, device=self._device)
        return (columns <= self.index[1][:, None])[:, None, None]

    def _fit(self, slots: int, columns: int, joining: Sequence[Any] = ()) -> None:
        """Grow the buffers by half at least where they are too small; shrink them if rows join that need much less."""
        too_small = slots > self._slots or columns > self._columns
        too_big = joining and not self._padded and self._slots * self._columns >= 4 * max(slots, 4) * _round_up(columns)
        if not too_small and not too_big:
            return
        wide, many = _round_up(columns), 1 << (slots - 1).bit_length()
        if too_small and self._columns < columns:
            wide = _round_up(max(columns, self._columns + self._columns // 2))
        wide = max(wide, 0 if too_big else self._columns)
        if self._padded:
            many, wide = max(many, self._slots, _PADDED_SLOTS), _round_up(wide, _PADDED_STEP)
        if self.limit is not None and many * wide > self.limit:
            many, wide = slots, max(_round_up(columns), min(wide, self.limit // slots // _COLUMN_STEP * _COLUMN_STEP))
        held, width = len(self.lengths), max(self.lengths, default=0)
        for layer, like in zip(self._own_layers, joining or self._own_layers, strict=True):
            layer.resize(like.keys, like.values, many, wide, held, width)
        self.version += 1
        self._slots, self._columns = many, wide  # said last: where memory runs out half-way, all is done again


class SlotLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers' __init_subclass__ has no types
    """One layer of a :class:`SlotCache`; its keys and values are ``[slots, heads, columns, head_dim]``."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache

    def resize(self, keys: torch.Tensor, values: torch.Tensor, slots: int, columns: int, held: int, width: int) -> None:
        """Replace the buffers, keeping the first ``held`` slots and ``width`` columns.

        Args:
            keys: what the buffers are to be like: heads, head size, type and device.
            values: the same for the values.
            slots: rows there is room for.
            columns: tokens there is room for.
            held: slots in use.
            width: columns in use.
        """
        # Zeros, because masked columns are multiplied too and fresh memory may hold NaN.
        for name, like in (("keys", keys), ("values", values)):
            buffer = like.new_zeros(slots, like.shape[1], columns, like.shape[3])
            if held:
                buffer[:held, :, :width] = getattr(self, name)[:held, :, :width]
            setattr(self, name, buffer)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token per row, ``[rows, heads, 1, head_dim]``, and return all that the rows may look at."""
        cache = self._cache
        slots, columns = cache.index
        self.keys[slots, :, columns] = key_states[:, :, 0]
        self.values[slots, :, columns] = value_states[:, :, 0]
        rows, width = cache.rows, cache.width
        return self.keys[:rows, :, :width], self.values[:rows, :, :width]

    def get_seq_length(self) -> int:
        """Tokens of the longest row before this step."""
        return self._cache.width - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Width and offset of the mask of a step."""
        return self._cache.width, 0


def _round_up(columns: int, step: int = _COLUMN_STEP) -> int:
    return -(-columns // step) * step
