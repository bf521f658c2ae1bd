"""What Chatterbox takes of its device."""

from __future__ import annotations

from typing import Any

import pytest

from aiservices.handlers.chatterbox.checkpoint import _config
from aiservices.handlers.chatterbox.library import import_library
from aiservices.handlers.chatterbox.memory import _SOUND_PARAMETERS, _SPEAKERS, estimate_memory
from aiservices.handlers.chatterbox.options import ChatterboxOptions
from aiservices.handlers.chatterbox.variants import VARIANTS, Variant
from tests.handlers.chatterbox.speaking import NEEDS_CHATTERBOX

pytestmark = NEEDS_CHATTERBOX

HUB = "hf://ResembleAI/chatterbox"


def weights_of(model: str, **options: Any) -> float:
    need = estimate_memory(None, model, "cuda", ChatterboxOptions(**options))
    assert need is not None
    return need.weights_gib


def test_the_variants_are_told_apart_by_their_repositories() -> None:
    english = weights_of(f"{HUB}@main?files=ve.safetensors,t3_cfg.safetensors")
    assert weights_of(f"{HUB}?files=t3_mtl23ls_v2.safetensors") > english
    assert weights_of(f"{HUB}", variant="multilingual") > english
    assert weights_of(f"{HUB}-nano@main?files=*.safetensors") < weights_of(f"{HUB}-turbo") < english
    assert estimate_memory(None, "s3://bucket/voices/", "cuda", ChatterboxOptions()) is None


def test_guided_pieces_take_two_rows_each_and_a_cpu_twice_the_width() -> None:
    few, many = (estimate_memory(None, HUB, "cuda", ChatterboxOptions(rows=rows)) for rows in (4, 8))
    wide = estimate_memory(None, HUB, "cpu", ChatterboxOptions(rows=4))
    assert few is not None
    assert many is not None
    assert wide is not None
    assert many.cache_gib == 2 * few.cache_gib == wide.cache_gib
    # 4 pieces, two rows each, of 450 + 1000 tokens; 30 layers of 1024, keys and values, two bytes
    assert few.cache_gib == pytest.approx(4 * 2 * 1450 * 2 * 30 * 1024 * 2 / 2**30)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_sizes_are_those_of_the_librarys_classes(variant: Variant) -> None:
    """S3Gen cannot be made without memory and takes seconds: its 264 million were counted once."""
    import torch

    library = import_library()
    with torch.device("meta"):
        speaker = library.english.T3(_config(library, variant))
    if speaker.is_gpt:
        del speaker.tfmr.wte  # as when it is loaded
    assert _SPEAKERS[variant.name].parameters == pytest.approx(
        sum(parameter.numel() for parameter in speaker.parameters()), rel=0.005
    )
    assert _SPEAKERS[variant.name].passes == 1 + variant.guided
    assert 264e6 < _SOUND_PARAMETERS < 267e6
