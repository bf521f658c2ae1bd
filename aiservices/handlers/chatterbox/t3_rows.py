"""What T3 is asked, what comes of it, and where a row stands between two steps.

Imports torch: import it inside ``load``.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from aiservices.errors import JobFailed
from aiservices.handlers.chatterbox.alignment import RowAlignment, Verdict
from aiservices.handlers.chatterbox.faults import raise_if_of_device
from aiservices.handlers.chatterbox.sampling import Order, Sampler, Sampling

SPEECH_TOKENS = 6561
"""Ids from here on are marks, not sound."""


@attrs.frozen(eq=False)
class T3Request:
    """One piece to speak.

    Args:
        condition: voice and liveliness from :meth:`.T3Embedding.condition`, ``[tokens, width]``.
        text: ids with their start and end marks.
        cfg_weight: strength of the guidance; 0 takes half the work.
        sampling: how to choose.
        seed: of the row's generator.
        max_new_tokens: where a speech that does not end is cut.
    """

    condition: torch.Tensor
    text: Sequence[int]
    cfg_weight: float
    sampling: Sampling
    seed: int
    max_new_tokens: int


@attrs.frozen(eq=False)
class Draw:
    """What came of one request.

    Args:
        tokens: speech tokens without marks.
        ended: whether the model ended it; if not, it was cut.
        generator: the row's, as the last choice left it: the sound's noise comes from it too.
    """

    tokens: list[int]
    ended: bool
    generator: torch.Generator


@attrs.define(eq=False)
class Row:
    """A request under way in T3."""

    request: T3Request
    generator: torch.Generator
    seen: torch.Tensor
    alignment: RowAlignment | None
    slot: int
    unconditional_slot: int | None = None
    """Where the same row without its text is; None without guidance."""
    tokens: list[int] = attrs.field(factory=list)
    verdict: Verdict = Verdict.FREE
    """What its judge says of the next token."""
    error: Exception | None = None
    """What went wrong with it; it leaves with the next step."""

    def follow(self, attention: torch.Tensor, last_token: int) -> None:
        """Ask the judge, whose error is this row's alone."""
        if self.alignment is None or self.error is not None:
            return
        try:
            self.verdict = self.alignment.follow(attention, last_token)
        except Exception as error:
            raise_if_of_device(error)
            self.error = error

    def accept(self, token: int, stop_token: int, *, is_broken: bool) -> Draw | Exception | None:
        """Add a token; return what came of the row if that was its last.

        Args:
            token: what was chosen.
            stop_token: what ends a speech.
            is_broken: whether the logits were no numbers.
        """
        if self.error is not None:
            return self.error
        if is_broken:
            return JobFailed("the model's output was not a number; it may be damaged or of too narrow a type")
        self.tokens.append(token)
        ended = token == stop_token
        if not ended and len(self.tokens) < self.request.max_new_tokens:
            return None
        return Draw([token for token in self.tokens if token < SPEECH_TOKENS], ended, self.generator)


class Choices:
    """Chooses for all rows at once as long as the same rows are together.

    If that fails by the fault of one, it chooses for each alone: none of the generators has been used by then, so the
    others choose what they would have.

    Args:
        order: of the library's loop.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._sampler: Sampler | None = None

    def forget(self) -> None:
        """Note that rows came or went."""
        self._sampler = None

    def choose(self, rows: Sequence[Row], logits: torch.Tensor) -> list[int]:
        """Choose one token a row; a row whose choice failed has its error set.

        Args:
            rows: all there are.
            logits: theirs, ``[rows, vocabulary]`` in float32.
        """
        try:
            if self._sampler is None:
                self._sampler = self._together(rows)
            tokens: list[int] = self._sampler.choose(logits).tolist()
        except Exception as error:
            raise_if_of_device(error)
            self._sampler = None
            return [self._alone(row, logits[number : number + 1]) for number, row in enumerate(rows)]
        for number, failed in self._sampler.errors.items():
            rows[number].error = failed
        return tokens

    def _together(self, rows: Sequence[Row]) -> Sampler:
        seen = torch.stack([row.seen for row in rows])
        for number, row in enumerate(rows):
            row.seen = seen[number]
        return Sampler([row.request.sampling for row in rows], seen, [row.generator for row in rows], self._order)

    def _alone(self, row: Row, logits: torch.Tensor) -> int:
        try:
            sampler = Sampler([row.request.sampling], row.seen[None], [row.generator], self._order)
            token = int(sampler.choose(logits))
            row.error = row.error or sampler.errors.get(0)
        except Exception as error:
            raise_if_of_device(error)
            row.error = error
            return 0
        return token
