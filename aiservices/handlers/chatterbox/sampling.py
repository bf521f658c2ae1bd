"""Choose the next speech token of every row. Imports torch: import it inside ``load``.

The order of the steps is the library's, and so is the draw: ``torch.multinomial`` of one sample divides the
probabilities by exponential noise and takes the largest. With a generator of its own a row makes the very choices that
``T3.inference`` makes after ``torch.manual_seed`` with the same seed, whichever rows are beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs
import torch

from aiservices.handlers.chatterbox.faults import raise_if_of_device

Order = Literal["penalty_first", "penalty_last"]
"""Where the repetition penalty stands: Chatterbox has it first, Turbo last."""


@attrs.frozen
class Sampling:
    """How a row chooses.

    Args:
        temperature: 0 takes the most likely token.
        repetition_penalty: divides the logits of tokens seen before; 1 is none.
        min_p: drops tokens below this share of the most likely one's probability.
        top_p: keeps the most likely tokens that together have this probability.
        top_k: keeps that many tokens; 0 is all.
    """

    temperature: float = 0.8
    repetition_penalty: float = 1.2
    min_p: float = 0.05
    top_p: float = 1.0
    top_k: int = 0


class Sampler:
    """The choices of the rows that are together now.

    Args:
        rows: how each of them chooses.
        seen: tokens that each has seen, ``[rows, vocabulary]``; changed by :meth:`choose`.
        generators: of each row.
        order: of the library's loop.
    """

    def __init__(
        self,
        rows: Sequence[Sampling],
        seen: torch.Tensor,
        generators: Sequence[torch.Generator],
        order: Order,
    ) -> None:
        self._seen, self._generators, self._order = seen, generators, order
        self._temperature = _column([row.temperature or 1.0 for row in rows], seen)
        self._greedy = torch.tensor([row.temperature == 0 for row in rows], device=seen.device)
        self._penalty = _column([row.repetition_penalty for row in rows], seen)
        self._min_p = _column([row.min_p for row in rows], seen) if any(row.min_p > 0 for row in rows) else None
        self._top_p = _column([row.top_p for row in rows], seen) if any(row.top_p < 1 for row in rows) else None
        self._top_k = [row.top_k for row in rows]
        self._rows = torch.arange(len(rows), device=seen.device)
        self.errors: dict[int, Exception] = {}
        """Rows whose generator failed, with why; what is chosen for them means nothing."""

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Choose and note one token a row.

        Args:
            logits: ``[rows, vocabulary]`` in float32, forbidden tokens at minus infinity.

        Returns:
            Tokens, ``[rows]``; the caller finds rows without any finite logit by itself.
        """
        if self._order == "penalty_first":
            logits = self._filtered(self._penalised(logits) / self._temperature)
        else:
            logits = self._penalised(self._filtered(logits / self._temperature))
        probabilities = torch.softmax(logits, dim=-1)
        noise = torch.ones_like(probabilities)
        for row, generator in enumerate(self._generators):
            try:
                noise[row].exponential_(generator=generator)
            except Exception as error:
                raise_if_of_device(error)
                self.errors[row] = error
        ratio = torch.where(self._greedy[:, None], probabilities, probabilities / noise)
        tokens = ratio.argmax(dim=-1)
        self._seen[self._rows, tokens] = True
        return tokens

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        """Keskar et al., CTRL, 2019."""
        lowered = torch.where(logits < 0, logits * self._penalty, logits / self._penalty)
        return torch.where(self._seen, lowered, logits)

    def _filtered(self, logits: torch.Tensor) -> torch.Tensor:
        if any(self._top_k):
            logits = self._top(logits)
        if self._min_p is not None:
            probabilities = torch.softmax(logits, dim=-1)
            floor = self._min_p * probabilities.amax(dim=-1, keepdim=True)
            logits = logits.masked_fill(probabilities < floor, float("-inf"))
        return logits if self._top_p is None else self._nucleus(logits, self._top_p)

    def _top(self, logits: torch.Tensor) -> torch.Tensor:
        size = logits.shape[-1]
        counts = torch.tensor([min(count or size, size) for count in self._top_k], device=logits.device)
        ordered = logits.topk(int(counts.max())).values
        return logits.masked_fill(logits < ordered.gather(-1, counts[:, None] - 1), float("-inf"))

    @staticmethod
    def _nucleus(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
        """Holtzman et al., The Curious Case of Neural Text Degeneration, 2019; summed from the least likely up."""
        ordered, order = logits.sort(dim=-1)
        dropped = ordered.softmax(dim=-1).cumsum(dim=-1) <= (1 - top_p)
        dropped[:, -1] = False
        return logits.masked_fill(torch.zeros_like(dropped).scatter_(-1, order, dropped), float("-inf"))


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
