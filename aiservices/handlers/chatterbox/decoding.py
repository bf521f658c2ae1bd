"""One decoding step of all slots: as it comes, or padded to few shapes and replayed as a CUDA graph.

Imports torch: import it inside ``load``. A step of one row launches some 600 small kernels, and launching is what takes
the time; a captured graph launches them at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from aiservices.handlers.chatterbox.slots import Slots
from aiservices.handlers.cuda_graphs import Captured, Capturer

_WIDTH_STEP = 256


class Decoder:
    """Runs :meth:`.slots.Slots.decode` on exactly the rows and columns that there are."""

    def __init__(self, slots: Slots, device: str) -> None:
        self._slots, self._device = slots, device

    def prepare(self, width: int) -> None:
        """Do ahead of time what has to be done once.

        Args:
            width: of the hidden states.
        """

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
    attention: list[torch.Tensor] = attrs.field(factory=list)
    captured: Captured | None = None


class PaddedDecoder(Decoder):
    """Pads slots to a power of two and columns to a multiple of 256, over slots of fixed size.

    Args:
        slots: made with ``fixed``.
        device: of the slots.
        fixed: their slots and columns.
        graphs: whether each shape is captured, at load or at its first use; one that cannot be is run as it comes.
    """

    def __init__(self, slots: Slots, device: str, fixed: tuple[int, int], *, graphs: bool) -> None:
        super().__init__(slots, device)
        self._fixed, self._graphs = fixed, graphs
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._capturer = Capturer()

    def prepare(self, width: int) -> None:
        """Capture every shape there can be, the largest first, whose memory the others then use."""
        slots, columns = self._fixed
        if not self._graphs:
            return
        counts = sorted({min(1 << power, slots) for power in range(slots.bit_length() + 1)}, reverse=True)
        widths = sorted({min(each, columns) for each in range(_WIDTH_STEP, columns + _WIDTH_STEP, _WIDTH_STEP)})
        for count in counts:
            for wide in reversed(widths):
                self._capture(self._made(count, wide, width), wide)

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
        return self._made(count, width, hidden.shape[1]), width

    def _made(self, count: int, columns: int, width: int) -> _Shape:
        if (count, columns) not in self._shapes:
            self._shapes[count, columns] = _Shape(
                torch.zeros(count, width, dtype=self._slots.dtype, device=self._device),
                torch.zeros(count, dtype=torch.long, device=self._device),
            )
        return self._shapes[count, columns]

    def _run(self, shape: _Shape, width: int) -> torch.Tensor:
        self._capture(shape, width)
        if shape.captured is not None:
            return shape.captured.replay().clone()  # the next replay writes there again
        out = self._slots.decode(shape.hidden, shape.positions, width)
        shape.attention = self._slots.attention
        return out

    def _capture(self, shape: _Shape, width: int) -> None:
        """Capture a shape, unless that was done or is of no use."""
        if not self._graphs or shape.captured is not None:
            return
        shape.captured = self._capturer.capture(lambda: self._slots.decode(shape.hidden, shape.positions, width))
        shape.attention = self._slots.attention
        self._graphs = shape.captured is not None
