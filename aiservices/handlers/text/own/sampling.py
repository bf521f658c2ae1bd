"""Choose the next token of every row from its logits. Imports torch: import it inside ``load``."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from aiservices.handlers.text.generation import GenerationRequest

NO_TOKEN = -1
"""Chosen for a row whose logits are not numbers, or whose every token is forbidden."""


@attrs.define(eq=False)
class Sampler:
    """How one row chooses, and the random numbers it has left.

    Attributes:
        temperature, top_p, top_k, repetition_penalty: as in :class:`~aiservices.handlers.text.generation.Sampling`.
        generator: of the draws; None where the likeliest token is taken.
        seen: which tokens the penalty falls on, ``[vocabulary]``; None without a penalty.
    """

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    generator: torch.Generator | None
    seen: torch.Tensor | None

    @classmethod
    def start(cls, request: GenerationRequest, vocabulary: int, device: str) -> Sampler:
        """Begin a row: same request and seed, same choices, whichever rows are beside it."""
        asked = request.sampling
        generator = None
        if asked.temperature > 0:
            generator = torch.Generator(device=device)
            generator.seed() if asked.seed is None else generator.manual_seed(asked.seed)
        seen = None
        if asked.repetition_penalty != 1:
            seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            seen[torch.tensor(request.prompt.token_ids, device=device)] = True
        return cls(
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            repetition_penalty=asked.repetition_penalty,
            generator=generator,
            seen=seen,
        )

    def note(self, token: int) -> None:
        """Remember a chosen token for the penalty."""
        if self.seen is not None:
            self.seen[token] = True


def choose_tokens(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Choose one token per row.

    Args:
        logits: ``[rows, vocabulary]`` in float32, forbidden tokens at minus infinity; changed in place.
        samplers: one per row.

    Returns:
        One token per row, :data:`NO_TOKEN` where there is none to choose.
    """
    for row, sampler in enumerate(samplers):
        if sampler.seen is not None:
            _penalise(logits[row], sampler.seen, sampler.repetition_penalty)
    tokens = logits.argmax(dim=-1)  # several times faster than max(), which gives both
    best = logits.gather(-1, tokens[:, None])[:, 0]
    sampled = [row for row, sampler in enumerate(samplers) if sampler.temperature > 0]
    if len(sampled) == len(samplers):
        tokens = _sample(logits, samplers)
    elif sampled:
        tokens[sampled] = _sample(logits[sampled], [samplers[row] for row in sampled])
    chosen: list[int] = tokens.masked_fill_(~best.isfinite(), NO_TOKEN).tolist()
    return chosen


def _penalise(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> None:
    """Make tokens seen before less likely (Keskar et al., CTRL, 2019), ``[vocabulary]`` in place."""
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    logits.copy_(torch.where(seen, lowered, logits))


def _sample(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    temperatures = logits.new_tensor([sampler.temperature for sampler in samplers])
    probabilities = torch.softmax(logits / temperatures[:, None], dim=-1)
    if any(sampler.top_p < 1 or sampler.top_k > 0 for sampler in samplers):
        probabilities = _truncate(probabilities, samplers)
    # A draw from each row's own generator; the largest ratio to exponential noise is a draw by probability.
    noise = torch.empty_like(probabilities)
    for row, sampler in enumerate(samplers):
        noise[row].exponential_(generator=sampler.generator)
    return (probabilities / noise).argmax(dim=-1)


def _truncate(probabilities: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Zero what lies outside top-k and top-p (Holtzman et al., The Curious Case of Neural Text Degeneration, 2019)."""
    size = probabilities.shape[-1]
    ordered, order = probabilities.sort(dim=-1, descending=True)
    top_p = ordered.new_tensor([sampler.top_p if sampler.top_p < 1 else 2.0 for sampler in samplers])
    top_k = ordered.new_tensor([sampler.top_k or size for sampler in samplers])
    before = ordered.cumsum(dim=-1) - ordered
    ranks = torch.arange(size, device=ordered.device)
    ordered = ordered.masked_fill((before >= top_p[:, None]) | (ranks >= top_k[:, None]), 0.0)
    return torch.zeros_like(probabilities).scatter_(-1, order, ordered)
