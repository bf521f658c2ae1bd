"""Read the prompts of rows that join, a bounded piece a step. Imports torch: import it inside ``load``.

Prompts wait in order of arrival. Those that fit into one piece are read together; one that cannot be read fails alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

import attrs
import torch

from aiservices.handlers.text.own.backbone import Backbone, Prompts
from aiservices.handlers.text.own.row import OwnRow


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
    """

    def __init__(self, backbone: Backbone, chunk_tokens: int) -> None:
        self._backbone = backbone
        self._chunk_tokens = chunk_tokens
        self._waiting: deque[OwnRow] = deque()
        self._alone: set[OwnRow] = set()  # to be read by themselves, because reading them in company failed
        self._reading: _Reading | None = None

    def __len__(self) -> int:
        return len(self._waiting) + (len(self._reading.present) if self._reading else 0)

    def add(self, row: OwnRow) -> None:
        """Let a row wait for its turn."""
        self._waiting.append(row)

    def read(self) -> PromptsRead | PromptUnreadable | None:
        """Read one piece.

        Returns:
            The rows that were read to their end or the one that failed, which leave the reader by that; None if there
            are none.

        Raises:
            torch.AcceleratorError: the device is broken, which is no row's fault.
        """
        if self._reading is None and not self._waiting:
            return None
        rows = self._reading.present if self._reading else self._next_rows()
        try:
            reading = self._reading or _Reading(rows, self._backbone.prepare([row.request.prompt for row in rows]))
            self._reading = reading
            logits = self._backbone.read(reading.prompts, max(1, self._chunk_tokens // len(reading.rows)))
        except Exception as error:
            self._reading = None
            return self._contain(rows, error)
        if logits is None:
            return None
        self._reading = None
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
        """Forget every row and the memory they hold."""
        self._waiting.clear()
        self._alone.clear()
        self._reading = None

    def _next_rows(self) -> list[OwnRow]:
        """Take prompts that together are read in one step, or one that is too long for that."""
        rows = [self._waiting.popleft()]
        widest = len(rows[0].request.prompt.token_ids)
        while self._waiting and not (rows[0] in self._alone or self._waiting[0] in self._alone):
            widest = max(widest, len(self._waiting[0].request.prompt.token_ids))
            if widest * (len(rows) + 1) > self._chunk_tokens:
                break
            rows.append(self._waiting.popleft())
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
