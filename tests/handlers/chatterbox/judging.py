"""The library's judge of multilingual speech: as 0.1.7 has it, and as its repository corrected it."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import pytest


def library() -> Any:
    """The judge's module, which warns at every suspicious token."""
    module = importlib.import_module("chatterbox.models.t3.inference.alignment_stream_analyzer")
    module.logger.setLevel(logging.ERROR)
    return module


def judge(first: int, end: int, stop_token: int) -> Any:
    """The library's judge without the hooks that its constructor hangs on a model."""
    import torch

    made = object.__new__(library().AlignmentStreamAnalyzer)
    made.__dict__.update(
        text_tokens_slice=(first, end),
        eos_idx=stop_token,
        alignment=torch.zeros(0, end - first),
        curr_frame_pos=0,
        text_position=0,
        started=False,
        started_at=None,
        complete=False,
        completed_at=None,
        generated_tokens=[],
        last_aligned_attns=[],
    )
    return made


def as_corrected(patch: pytest.MonkeyPatch) -> None:
    """Have the library end a speech at three equal tokens in place of two, as its repository does by now."""
    import torch

    judge = library().AlignmentStreamAnalyzer
    step = judge.step

    def corrected(self: Any, logits: Any, next_token: Any = None) -> Any:
        judged = step(self, logits)  # it counts only the tokens that it is given
        self.__dict__.setdefault("seen", []).append(int(next_token))
        if len(self.seen) >= 3 and len(set(self.seen[-3:])) == 1:
            judged = torch.full_like(judged, -(2**15))
            judged[..., self.eos_idx] = 2**15
        return judged

    patch.setattr(judge, "step", corrected)
