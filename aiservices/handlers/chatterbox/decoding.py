"""One decoding step of all slots: as it comes, or padded to few shapes and replayed as a CUDA graph.

Imports torch: import it inside ``load``. A step of one row launches some 600 small kernels, and launching is what takes
the time; a captured graph launches them at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import attrs
import torch

from aiservices.handlers.chatterbox.slots import Slots

log = logging.getLogger(__name__)

_WIDTH_STEP = 256


class Decoder:
    """Runs :meth:`.slots.Slots.decode` on exactly the rows and columns that there are."""

    def __init__(self, slots: Slots, device: str) -> None:
        self._slots, self._device = slots, device

    def decode(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run one token a slot.

        Args:
            hidden: the embedded tokens, ``[slots, width]``.

        Returns:
            The last hidden states, ``[slots, width]``.
        """
        lengths = self._slots.lengths
        self._slots.make_room()
        positions = torch.tensor(lengths, device=self._device)
        return self._slots.decode(hidden, positions, max(lengths) + 1)


@attrs.define(eq=False)
class _Shape:
    """Inputs and outputs of one number of slots and columns, at addresses that stay."""

    hidden: torch.Tensor
    positions: torch.Tensor
    out: torch.Tensor | None = None
    attention: list[torch.Tensor] = attrs.field(factory=list)
    graph: torch.cuda.CUDAGraph | None = None


class PaddedDecoder(Decoder):
    """Pads slots to a power of two and columns to a multiple of 256, over slots of fixed size.

    Args:
        slots: made with ``fixed``.
        device: of the slots.
        fixed: their slots and columns.
        graphs: whether each shape is captured at its first use; a shape that cannot be is run as it comes.
    """

    def __init__(self, slots: Slots, device: str, fixed: tuple[int, int], *, graphs: bool) -> None:
        super().__init__(slots, device)
        self._fixed, self._graphs = fixed, graphs
        self._shapes: dict[tuple[int, int], _Shape] = {}

    def decode(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run one token a slot."""
        lengths = self._slots.lengths
        self._slots.make_room()
        shape, width = self._shape(hidden, lengths)
        shape.hidden[: len(lengths)] = hidden
        shape.positions.zero_()
        shape.positions[: len(lengths)] = torch.tensor(lengths, device=self._device)
        out = self._run(shape, width)
        self._slots.attention = shape.attention
        return out[: len(lengths)]

    def _shape(self, hidden: torch.Tensor, lengths: Sequence[int]) -> tuple[_Shape, int]:
        count = min(1 << (len(lengths) - 1).bit_length(), self._fixed[0])
        width = min(-(-(max(lengths) + 1) // _WIDTH_STEP) * _WIDTH_STEP, self._fixed[1])
        if (count, width) not in self._shapes:
            self._shapes[count, width] = _Shape(
                hidden.new_zeros(count, hidden.shape[1]),
                torch.zeros(count, dtype=torch.long, device=self._device),
            )
        return self._shapes[count, width], width

    def _run(self, shape: _Shape, width: int) -> torch.Tensor:
        if self._graphs and shape.graph is None:
            self._capture(shape, width)
        if shape.graph is not None and shape.out is not None:
            shape.graph.replay()
            return shape.out.clone()  # the next replay writes there again
        out = self._slots.decode(shape.hidden, shape.positions, width)
        shape.attention = self._slots.attention
        return out

    def _capture(self, shape: _Shape, width: int) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # the first runs choose kernels and must not be part of the graph
            for _ in range(2):
                self._slots.decode(shape.hidden, shape.positions, width)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                shape.out = self._slots.decode(shape.hidden, shape.positions, width)
        except RuntimeError:
            log.warning("CUDA graphs are turned off: a step could not be captured", exc_info=True)
            self._graphs = False
            return
        shape.graph, shape.attention = graph, self._slots.attention
