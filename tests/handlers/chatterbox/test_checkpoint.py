"""Checkpoints that are not whole are refused by the name of what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiservices.errors import ServiceError
from tests.handlers.chatterbox.speaking import NEEDS_CHATTERBOX, loaded

pytestmark = NEEDS_CHATTERBOX


def rewrite(file: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    change(weights)
    file.unlink()  # the file is a link to the one that the other tests use
    save_file(weights, file)


def test_a_renamed_weight_that_the_library_would_swallow_is_named(copied: Path) -> None:
    name = "flow.encoder_proj.weight"
    rewrite(copied / "s3gen.safetensors", lambda weights: weights.update({f"x.{name}": weights.pop(name)}))
    with pytest.raises(ServiceError, match=rf"s3gen\.safetensors are missing: {name}; unknown: x\.{name}$"):
        loaded(copied)


@pytest.mark.parametrize("file", ["t3_cfg.safetensors", "ve.safetensors"])
def test_a_missing_weight_is_named(copied: Path, file: str) -> None:
    rewrite(copied / file, lambda weights: weights.pop(next(iter(weights))))
    with pytest.raises(
        ServiceError, match=r"the checkpoint does not fit: weights in .* are missing: .*; unknown: none$"
    ):
        loaded(copied)
