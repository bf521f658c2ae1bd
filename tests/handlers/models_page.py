"""What docs/models.md says of the released checkpoints' size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| `([\w./-]+)`(?:, ([\w, ]+))? \| \w+ \| ([\d.]+) B \| ([\d.]+) GB \|", re.MULTILINE)
ROWS = {f"{name} {kind}".strip(): (float(count), float(size)) for name, kind, count, size in _ROW.findall(_PAGE)}
"""Billions of parameters and GB of each row."""
SPEECH = {
    "ResembleAI/chatterbox English": "english",
    "ResembleAI/chatterbox multilingual v2, v3": "multilingual",
    "ResembleAI/chatterbox-turbo": "turbo",
    "ResembleAI/chatterbox-nano": "nano",
}
"""Variants of Chatterbox by row."""


def billions(model: Any) -> float:
    """Count the parameters, shared ones once."""
    counts: dict[int, int] = {id(parameter): parameter.numel() for parameter in model.parameters()}
    return sum(counts.values()) / 1e9
