"""Whether a multilingual speech still follows its text. Imports torch: import it inside ``load``.

Three heads of T3 look at the piece of text that is being spoken. From where they look a judge tells, token by token,
whether the speech may end yet, and whether it has to: because it lingers at the end of the text or goes back into it.

Source: ``AlignmentStreamAnalyzer`` of chatterbox-tts 0.1.7. This one differs where that one fails or was corrected:

* it takes a text of any length; the library's raises on five tokens or fewer once they are spoken ("A" has five);
* a speech is ended at three equal tokens in a row, as the library's repository has it by now; 0.1.7 ended it at two,
  which real speech has;
* it keeps sums instead of every row of attention, hangs no hooks on the model, and says what is to be done instead of
  doing it to the logits.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

import torch

ALIGNED_HEADS = ((12, 15), (13, 11), (9, 2))
"""Layer and head of each that follows the text; the library's ``LLAMA_ALIGNED_HEADS``."""

_LAST = 3  # the end mark is hardly ever looked at, and before it is punctuation
_NEAR_END = 5  # what lies before these columns has been spoken when the text is complete
_SHORT = 5  # a text of so few tokens may end at once
_BACK, _AHEAD = -4, 7  # a jump outside of these is not followed
_TOO_LONG = 5.0  # attention to one column, or to all before the end: five tokens are 0.2 s
_REPEATS = 3


class Verdict(Enum):
    """What the judge says of the next token."""

    FREE = "free"
    """It may be any."""
    GO_ON = "go on"
    """It may not end the speech."""
    END = "end"
    """It has to end the speech."""


def alignment_heads() -> dict[int, list[int]]:
    """Layer to heads whose attention shows where in the text the speech is."""
    heads: dict[int, list[int]] = {}
    for layer, head in ALIGNED_HEADS:
        heads.setdefault(layer, []).append(head)
    return heads


class RowAlignment:
    """The judge of one row.

    Args:
        first: column of the text's first token.
        end: the one after its last.
    """

    def __init__(self, first: int, end: int) -> None:
        self._first, self._end = first, end
        self._steps = 0
        self._position = 0
        self._complete = False
        self._at_end = torch.zeros(min(_LAST, end - first))
        self._before_end = 0.0
        self._tokens: deque[int] = deque(maxlen=_REPEATS)

    def follow(self, attention: torch.Tensor, last_token: int) -> Verdict:
        """Take in one more token and judge the next.

        Args:
            attention: of the token, the mean over the heads, ``[columns]``, on the CPU.
            last_token: which it is.

        Raises:
            ValueError: the attention has fewer columns than the text ends at.
        """
        if len(attention) < self._end:
            raise ValueError(f"attention to {len(attention)} columns of a text that ends at {self._end}")
        row = attention[self._first : self._end].float()
        self._steps += 1
        row = torch.where(torch.arange(len(row)) < self._steps, row, 0.0)  # speech is no faster than a token of text
        self._tokens.append(last_token)
        if self._complete:
            self._at_end += row[-_LAST:]
            self._before_end += float(row[:-_NEAR_END].max()) if len(row) > _NEAR_END else 0.0
        looked_at = int(row.argmax())
        if _BACK < looked_at - self._position < _AHEAD:
            self._position = looked_at
        self._complete = self._complete or self._position >= len(row) - _LAST
        if self._has_to_end():
            return Verdict.END
        return Verdict.GO_ON if looked_at < len(row) - _LAST and len(row) > _SHORT else Verdict.FREE

    def _has_to_end(self) -> bool:
        lingers = float(self._at_end.max()) >= _TOO_LONG
        repeats = len(self._tokens) == _REPEATS and len(set(self._tokens)) == 1
        return lingers or self._before_end > _TOO_LONG or repeats
