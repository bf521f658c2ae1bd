"""Read the prompts of rows that join, a bounded piece a step. Imports torch: import it inside ``load``.

Prompts wait in order of arrival, and for room among the rows that decode. Those that fit into one piece and begin alike
are read together; one that cannot be read fails alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

import attrs
import torch

from aiservices.handlers.text.own.backbone import Backbone, Prompts
from aiservices.handlers.text.own.prefix_cache import PrefixCache
from aiservices.handlers.text.own.row import OwnRow

Fits = Callable[[Sequence[int]], bool]
"""Tells whether rows of so many tokens each would have room among those that decode."""


@attrs.frozen(eq=False)
class PromptsRead:
    """Rows whose prompts are read.

    Attributes:
        rows: those that are still wanted.
        places: where among the prompts each of them stands.
        prompts: what was read, with the cache that it filled.
        logits: after each row's last token, ``[rows, vocabulary]`` in float32.
    """

    rows: Sequence[OwnRow]
    places: Sequence[int]
    prompts: Prompts
    logits: torch.Tensor


@attrs.frozen(eq=False)
class PromptUnreadable:
    """A row whose prompt could not be read, by itself too."""

    row: OwnRow
    error: Exception


@attrs.define(eq=False)
class _Reading:
    """Rows whose prompts are being read together; those that were evicted meanwhile are gone."""

    rows: list[OwnRow]
    prompts: Prompts
    gone: set[OwnRow] = attrs.field(factory=set)

    @property
    def present(self) -> list[OwnRow]:
        return [row for row in self.rows if row not in self.gone]


class PromptReader:
    """Rows whose prompts are still to be read.

    Args:
        backbone: the model.
        chunk_tokens: how many prompt tokens one step reads at most.
        prefixes: beginnings that need no reading.
    """

    def __init__(self, backbone: Backbone, chunk_tokens: int, prefixes: PrefixCache | None = None) -> None:
        self._backbone = backbone
        self._prefixes = prefixes or PrefixCache(0)
        self._chunk_tokens = chunk_tokens
        self._waiting: deque[OwnRow] = deque()
        self._alone: set[OwnRow] = set()  # to be read by themselves, because reading them in company failed
        self._reading: _Reading | None = None

    def __len__(self) -> int:
        return len(self._waiting) + (len(self._reading.present) if self._reading else 0)

    def add(self, row: OwnRow) -> None:
        """Let a row wait for its turn."""
        self._waiting.append(row)

    def put_back(self, row: OwnRow) -> None:
        """Let a row that had to make way for others be the next."""
        self._waiting.appendleft(row)

    def read(self, fits: Fits = lambda lengths: True) -> PromptsRead | PromptUnreadable | None:
        """Read one piece.

        Args:
            fits: asked before prompts are begun.

        Returns:
            The rows that were read to their end or the one that failed, which leave the reader by that; None if there
            are none, or the next one has no room yet.

        Raises:
            torch.AcceleratorError: the device is broken, which is no row's fault.
        """
        if self._reading is None and not self._waiting:
            return None
        rows = self._reading.present if self._reading else self._next_rows(fits)
        if not rows:
            return None
        try:
            reading = self._reading = self._reading or self._begin(rows)
            logits = self._backbone.read(reading.prompts, max(1, self._chunk_tokens // len(reading.rows)))
        except Exception as error:
            self._reading = None
            return self._contain(rows, error)
        if logits is None:
            return None
        self._reading = None
        self._prefixes.learn([row.prompt for row in reading.rows], reading.prompts)
        return _taken_out(reading, logits)

    def evict(self, leaving: Collection[int]) -> None:
        """Take rows out.

        Args:
            leaving: the ``id`` of each task that leaves; those not there are ignored.
        """
        self._waiting = deque(row for row in self._waiting if id(row.task) not in leaving)
        self._alone.intersection_update(self._waiting)
        if self._reading is not None:
            self._reading.gone.update(row for row in self._reading.rows if id(row.task) in leaving)
            if not self._reading.present:
                self._reading = None

    def clear(self) -> None:
        """Forget every row; the beginnings stay until :meth:`forget`."""
        self._waiting.clear()
        self._alone.clear()
        self._reading = None

    def forget(self) -> None:
        """Give back the beginnings that are kept."""
        self._prefixes.clear()

    def _begin(self, rows: list[OwnRow]) -> _Reading:
        asked = [row.prompt for row in rows]
        prompts = self._backbone.prepare(asked)
        prefix = self._prefixes.find(asked[0])
        if prefix is not None:
            prefix.put_into(prompts)
        return _Reading(rows, prompts)

    def _next_rows(self, fits: Fits) -> list[OwnRow]:
        """Take prompts that together are read in one step, or one that is too long for that; none if none has room."""
        first = self._waiting[0].prompt
        prefix, alone = self._prefixes.find(first), self._waiting[0] in self._alone
        known = len(prefix.token_ids) if prefix else 0
        lengths: list[int] = []
        for row in self._waiting:
            prompt = row.prompt
            widest = max([*lengths, len(prompt.token_ids)]) - known
            if lengths and (
                alone
                or row in self._alone
                or widest * (len(lengths) + 1) > self._chunk_tokens
                or self._prefixes.find(prompt) is not prefix
            ):
                break
            if not fits([*lengths, len(prompt.token_ids)]):
                break
            lengths.append(len(prompt.token_ids))
        rows = [self._waiting.popleft() for _ in lengths]
        for row in rows:
            row.go_on()
        for row in self._waiting if not rows else ():
            row.wait()
        self._alone.difference_update(rows)
        return rows

    def _contain(self, rows: Sequence[OwnRow], error: Exception) -> PromptUnreadable | None:
        """Find out which prompt could not be read by reading each alone; a broken device is nobody's fault."""
        if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
            raise error
        if len(rows) == 1:
            return PromptUnreadable(rows[0], error)
        self._alone.update(rows)
        self._waiting.extendleft(reversed(rows))
        return None


def _taken_out(reading: _Reading, logits: torch.Tensor) -> PromptsRead:
    places = [place for place, row in enumerate(reading.rows) if row not in reading.gone]
    if len(places) < len(reading.rows):
        logits = logits[places]
    return PromptsRead(reading.present, places, reading.prompts, logits)
