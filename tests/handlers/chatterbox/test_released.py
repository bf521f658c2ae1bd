"""Each released checkpoint, in its own files with small weights: loaded, asked for one text, heard."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.handlers import tiny_chatterbox
from tests.handlers.chatterbox.speaking import NEEDS_CHATTERBOX, loaded, samples_of, say

pytestmark = NEEDS_CHATTERBOX

RELEASED = {
    "english": ("english", 1.2),
    "multilingual": ("multilingual", 2.0),
    "multilingual v3": ("multilingual", 1.2),
    "turbo": ("turbo", 1.2),
    "nano": ("nano", 1.2),
}
"""Variant and repetition penalty of each."""


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_checkpoint_is_loaded_without_a_warning_and_speaks(
    patch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    tiny_chatterbox.write_checkpoint(tmp_path, name)
    caplog.clear()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        logging.getLogger("transformers").addHandler(caplog.handler)  # its records go no further up
        handler = loaded(tmp_path)
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == []
    model = handler._ready.model
    assert (model.variant.name, model.variant.repetition_penalty) == RELEASED[name]
    output = say(handler, "A")
    handler.unload()
    assert (output.voice, output.warnings) == ("default", [])
    assert np.abs(samples_of(output)).max() > 0.01


def test_of_two_multilingual_models_the_newer_is_taken_and_not_judged(
    patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny_chatterbox.write_checkpoint(tmp_path, "multilingual v3")
    (tmp_path / "t3_mtl23ls_v2.safetensors").write_bytes(b"not to be read")
    handler = loaded(tmp_path)
    assert not handler._ready.engine._t3._aligned
    handler.unload()


def test_the_tokenizer_of_turbo_has_the_tokens_of_the_released_one(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_chatterbox.write_checkpoint(tmp_path, "turbo")
    handler = loaded(tmp_path)
    reader: Any = handler._ready.model.reader
    assert len(reader._tokenizer) == 50276
    assert tiny_chatterbox.END_OF_TEXT + 1 in reader.read("Hello [laugh]", "en")
    handler.unload()


def test_unknown_weights_of_s3gen_are_named_once_and_missing_ones_refused(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.handlers.chatterbox.test_checkpoint import rewrite

    first = next(iter(tiny_chatterbox.import_library().S3Gen().state_dict()))
    rewrite(
        copied / "s3gen.safetensors",
        lambda weights: weights.update({f"extra.{number}": weights[first].clone() for number in range(5)}),
    )
    with caplog.at_level(logging.WARNING):
        loaded(copied).unload()
    said = [record.getMessage() for record in caplog.records]
    named = "extra.0, extra.1, extra.2 and 2 more"
    assert said == [f"weights in s3gen.safetensors are not known and not used: {named}"]
