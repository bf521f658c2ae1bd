"""The model that the tests upload, and what they ask about it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.storage.proxy import Seen

URI = "s3://models/org/name/"
MIB = 2**20
WEIGHTS = os.urandom(MIB) * 5 + os.urandom(MIB // 2)
MODEL = {"config.json": b"{}", "model.safetensors": WEIGHTS}


def is_weights(seen: Seen) -> bool:
    """Whether a request was for the weights."""
    return seen.path.endswith("model.safetensors")


def nothing_loads(folder: Path) -> bool:
    """Whether no folder is marked as a complete model."""
    return not [path for path in folder.rglob("*") if path.name == ".aiservices.json"]
