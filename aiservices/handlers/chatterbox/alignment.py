"""Whether a multilingual speech still follows its text. Imports torch: import it inside ``load``.

The library judges each token by the attention of three heads and suppresses or forces the end of the speech by it. Its
judge is used as it is, one a row, fed from the keys and values that :mod:`.slots` keeps: the library's own feeding
hangs a hook on the model at every generation and never takes it off.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def alignment_heads() -> dict[int, list[int]]:
    """Layer to heads whose attention shows where in the text the speech is."""
    heads: dict[int, list[int]] = {}
    for layer, head in _library().LLAMA_ALIGNED_HEADS:
        heads.setdefault(layer, []).append(head)
    return heads


class RowAlignment:
    """The judge of one row.

    Args:
        text: first and last plus one column of the text's tokens.
        stop_token: what ends a speech.
    """

    def __init__(self, text: tuple[int, int], stop_token: int) -> None:
        library = _library()
        self._judge: Any = object.__new__(library.AlignmentStreamAnalyzer)  # its constructor would hang hooks
        fields: Mapping[str, Any] = {
            "text_tokens_slice": text,
            "eos_idx": stop_token,
            "alignment": torch.zeros(0, text[1] - text[0]),
            "curr_frame_pos": 0,
            "text_position": 0,
            "started": False,
            "started_at": None,
            "complete": False,
            "completed_at": None,
            "generated_tokens": [],
            "last_aligned_attns": [],
        }
        self._judge.__dict__.update(fields)
        self._text = text

    def begin(self, attention: Sequence[torch.Tensor]) -> None:
        """Take in the prompt: attention of its last two tokens, ``[2, tokens]`` a head."""
        seen = torch.stack(list(attention)).mean(dim=0).cpu()
        self._judge.last_aligned_attns = [torch.cat([seen.new_zeros(self._text[1], seen.shape[1]), seen])]

    def follow(self, attention: torch.Tensor) -> None:
        """Take in one more token: the heads' mean attention, ``[columns]``."""
        self._judge.last_aligned_attns = [attention[None]]

    def judge(self, logits: torch.Tensor, last_token: int) -> torch.Tensor:
        """Suppress or force the end.

        Args:
            logits: ``[vocabulary]``.
            last_token: the one chosen before.
        """
        judged: torch.Tensor = self._judge.step(logits[None].clone(), next_token=last_token)
        return judged[0]


def _library() -> Any:
    module = importlib.import_module("chatterbox.models.t3.inference.alignment_stream_analyzer")
    module.logger.setLevel(logging.ERROR)  # it warns at every suspicious token of every row
    return module
