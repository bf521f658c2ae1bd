"""What chatterbox-tts needs around it, and what it has to be told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aiservices.errors import ServiceError
from tests.handlers.chatterbox.speaking import NEEDS_CHATTERBOX, loaded

pytestmark = NEEDS_CHATTERBOX


def test_a_missing_package_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perth", None)
    with pytest.raises(ServiceError, match=r"not installed whole .*perth.*scripts/install chatterbox"):
        loaded(checkpoint)


def test_a_watermark_that_cannot_be_loaded_is_an_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["perth"], "PerthImplicitWatermarker", None)
    with pytest.raises(ServiceError, match="setuptools<82"):
        loaded(checkpoint)
