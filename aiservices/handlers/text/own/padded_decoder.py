"""Decoding steps of few shapes, replayed as CUDA graphs. Imports torch: import it inside ``load``.

A step launches some thousand small kernels, and for few rows launching is what takes the time; a graph launches them at
once. So rows are padded to a power of two and columns to a multiple of 256. Without graphs the padded step is computed
as it comes, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch

from aiservices.handlers.cuda_graphs import Captured, Capturer
from aiservices.handlers.text.own.slot_cache import SlotCache

Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, SlotCache], torch.Tensor]
"""From tokens, their columns, and rope deltas, each ``[rows]``, to logits ``[rows, vocabulary]``."""

_CAPTURE_AFTER = 4
"""Steps of a shape before it is captured: one that is met now and then is not worth the second that takes."""


@attrs.define(eq=False)
class _Shape:
    """Inputs of one number of rows and columns, at addresses that stay."""

    tokens: torch.Tensor
    deltas: torch.Tensor
    steps: int = 0
    captured: Captured | None = None


class PaddedDecoder:
    """Runs steps over a padded :class:`~aiservices.handlers.text.own.slot_cache.SlotCache`.

    Args:
        step: computes one, of tensors only.
        device: where.
        graphs: whether shapes are captured.
    """

    def __init__(self, step: Step, device: str, *, graphs: bool) -> None:
        self._step, self._device, self._graphs = step, device, graphs
        self._capturer = Capturer()
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._version = -1

    def decode(self, tokens: Sequence[int], cache: SlotCache, deltas: torch.Tensor) -> torch.Tensor:
        """Compute one step of the rows that the cache holds, which is ready for it.

        Args:
            tokens: each row's latest token.
            cache: padded.
            deltas: per row, ``[rows]``.

        Returns:
            Logits, ``[rows, vocabulary]``.
        """
        if cache.version != self._version:  # graphs hold the addresses of its buffers
            self._shapes.clear()
            self._version = cache.version
        shape = self._shape(cache)
        shape.tokens.copy_(torch.tensor([*tokens, *[0] * (cache.rows - len(tokens))]))
        shape.deltas.zero_()[: len(tokens)] = deltas
        return self._run(shape, cache)[: len(tokens)]

    def _shape(self, cache: SlotCache) -> _Shape:
        size = cache.rows, cache.width
        if size not in self._shapes:
            self._shapes[size] = _Shape(
                torch.zeros(cache.rows, dtype=torch.long, device=self._device),
                torch.zeros(cache.rows, dtype=torch.long, device=self._device),
            )
        return self._shapes[size]

    def _run(self, shape: _Shape, cache: SlotCache) -> torch.Tensor:
        columns = cache.index[1]

        def run() -> torch.Tensor:
            return self._step(shape.tokens, columns, shape.deltas, cache)

        shape.steps += 1
        if self._graphs and shape.captured is None and shape.steps > _CAPTURE_AFTER:
            shape.captured = self._capturer.capture(run)
            self._graphs = shape.captured is not None
        if shape.captured is not None:
            return shape.captured.replay().clone()  # masks and penalties are written into it
        return run()
