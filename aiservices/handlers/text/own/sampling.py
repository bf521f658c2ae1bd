"""Choose the next token of every row from its logits. Imports torch: import it inside ``load``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import torch

from aiservices.handlers.text.generation import GenerationRequest, Sampling

NO_TOKEN = -1
"""Chosen for a row whose logits are not numbers, or whose every token is forbidden."""


@attrs.define(eq=False)
class Sampler:
    """How one row chooses, and the random numbers it has left.

    Attributes:
        asked: by the request.
        generator: of the draws; None where the likeliest token is taken.
        seen: the repetition penalty of tokens in prompt and answer, 1 for the others, ``[vocabulary]``; None without.
        held: the presence penalty of tokens in the answer, 0 for the others, ``[vocabulary]``; None without.
    """

    asked: Sampling
    generator: torch.Generator | None
    seen: torch.Tensor | None
    held: torch.Tensor | None

    @classmethod
    def start(cls, request: GenerationRequest, vocabulary: int, device: str) -> Sampler:
        """Begin a row: same request and seed, same choices, whichever rows are beside it."""
        asked = request.sampling
        generator = seen = held = None
        if asked.temperature > 0:
            generator = torch.Generator(device=device)
            generator.seed() if asked.seed is None else generator.manual_seed(asked.seed)
        if asked.repetition_penalty != 1:
            seen = torch.ones(vocabulary, device=device)
            seen[torch.tensor(request.prompt.token_ids, device=device)] = asked.repetition_penalty
        if asked.presence_penalty:
            held = torch.zeros(vocabulary, device=device)
        return cls(asked, generator, seen, held)


class RowSamplers:
    """The samplers of some rows side by side, so that a step chooses for all of them in one go.

    What the rows remember of their tokens moves in here; a sampler sees its own part of it, and takes it along to the
    next companions. So only one of several that share a sampler is of use: the newest.

    Args:
        samplers: one per row.
        device: where the logits are.
    """

    def __init__(self, samplers: Sequence[Sampler], device: str) -> None:
        self.samplers = tuple(samplers)
        self._device = device
        asked = [sampler.asked for sampler in samplers]
        self._repetition = self._stack("seen", [each.repetition_penalty for each in asked])
        self._presence = self._stack("held", [each.presence_penalty for each in asked])
        drawing = [sampler for sampler in samplers if sampler.generator is not None]
        self._generators = [sampler.generator for sampler in drawing]
        self._drawing = [row for row, sampler in enumerate(samplers) if sampler.generator is not None]
        self._temperatures = self._column([sampler.asked.temperature for sampler in drawing])
        self._truncation: tuple[torch.Tensor, torch.Tensor] | None = None
        if any(sampler.asked.top_p < 1 or sampler.asked.top_k for sampler in drawing):
            top_p = self._column([sampler.asked.top_p if sampler.asked.top_p < 1 else 2.0 for sampler in drawing])
            top_k = self._column([float(sampler.asked.top_k or 2**31) for sampler in drawing])
            self._truncation = top_p, top_k

    def choose(self, logits: torch.Tensor, forced: Mapping[int, int]) -> list[int]:
        """Choose one token per row.

        Args:
            logits: ``[rows, vocabulary]`` in float32, forbidden tokens at minus infinity; changed in place.
            forced: tokens of rows that have no choice; their random numbers are drawn all the same.

        Returns:
            One token per row, :data:`NO_TOKEN` where there is none to choose. This is the step's one wait for the
            device.
        """
        self._penalise(logits)
        tokens = logits.argmax(dim=-1)  # several times faster than max(), which gives both
        best = logits.gather(-1, tokens[:, None])[:, 0]
        if len(self._drawing) == len(tokens):
            tokens = self._draw(logits)
        elif self._drawing:
            tokens[self._drawing] = self._draw(logits[self._drawing])
        if forced:
            tokens[list(forced)] = torch.tensor(list(forced.values()), device=self._device)
        for penalty in (self._repetition, self._presence):
            if penalty is not None:
                penalty.note(tokens)
        chosen: list[int] = tokens.masked_fill_(~best.isfinite(), NO_TOKEN).tolist()
        return chosen

    def _penalise(self, logits: torch.Tensor) -> None:
        """Repetition first, then presence, as vLLM does."""
        if (penalty := self._repetition) is not None:
            # Keskar et al., CTRL, 2019
            own = logits if penalty.everywhere else logits[penalty.rows]
            penalised = torch.where(own > 0, own / penalty.table, own * penalty.table)
            logits.index_copy_(0, penalty.rows, penalised)
        if (penalty := self._presence) is not None:
            logits.index_add_(0, penalty.rows, penalty.table, alpha=-1)

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        probabilities = torch.softmax(logits / self._temperatures, dim=-1)
        if self._truncation is not None:
            probabilities = _truncate(probabilities, *self._truncation)
        # The largest ratio to exponential noise is a draw by probability. Each row's noise is from a generator of its
        # own, which is what makes it independent of the others; torch takes one generator a call, so one call a row.
        noise = torch.empty_like(probabilities)
        for row, generator in enumerate(self._generators):
            noise[row].exponential_(generator=generator)
        return (probabilities / noise).argmax(dim=-1)

    def _stack(self, name: str, strengths: Sequence[float]) -> _Penalty | None:
        rows = [row for row, sampler in enumerate(self.samplers) if getattr(sampler, name) is not None]
        if not rows:
            return None
        table = torch.stack([getattr(self.samplers[row], name) for row in rows])
        for row, own in zip(rows, table, strict=True):
            setattr(self.samplers[row], name, own)
        places = torch.tensor(rows, device=self._device)
        column = self._column([strengths[row] for row in rows])
        return _Penalty(places, column, table, everywhere=len(rows) == len(self.samplers))

    def _column(self, numbers: Sequence[float]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float32, device=self._device)[:, None]


@attrs.frozen(eq=False)
class _Penalty:
    """What one kind of penalty falls on.

    Attributes:
        rows: those that have it, ``[penalised]``.
        strengths: of each, ``[penalised, 1]``.
        table: what each token loses by, ``[penalised, vocabulary]``.
        everywhere: whether all rows have it.
    """

    rows: torch.Tensor
    strengths: torch.Tensor
    table: torch.Tensor
    everywhere: bool

    def note(self, chosen: torch.Tensor) -> None:
        """Remember the tokens of a step, one per row of the batch."""
        self.table.scatter_(1, chosen[self.rows, None], self.strengths)


def _truncate(probabilities: torch.Tensor, top_p: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Zero what lies outside top-k and top-p (Holtzman et al., The Curious Case of Neural Text Degeneration, 2019)."""
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    ranks = torch.arange(probabilities.shape[-1], device=ordered.device)
    ordered = ordered.masked_fill((before >= top_p) | (ranks >= top_k), 0.0)
    return torch.zeros_like(probabilities).scatter_(-1, order, ordered)
