"""docs/models.md gives each released checkpoint the size that it has."""

from __future__ import annotations

import pytest

from tests.handlers.chatterbox.speaking import NEEDS_CHATTERBOX
from tests.handlers.models_page import ROWS, SPEECH, billions

pytestmark = NEEDS_CHATTERBOX


@pytest.mark.parametrize("row", SPEECH)
def test_speech_models_have_the_size_of_their_row(row: str) -> None:
    import torch

    from aiservices.handlers.chatterbox.checkpoint import _config
    from aiservices.handlers.chatterbox.library import import_library
    from aiservices.handlers.chatterbox.variants import VARIANTS
    from aiservices.handlers.torch_runtime import prepare_torch

    prepare_torch()
    library = import_library()
    variant = next(variant for variant in VARIANTS if variant.name == SPEECH[row])
    with torch.device("meta"):
        t3 = library.english.T3(_config(library, variant))
    if t3.is_gpt:
        del t3.tfmr.wte  # as when it is loaded
    sound = billions(library.english.S3Gen(meanflow=variant.family == "turbo"))
    narrow, wide = billions(t3), sound + billions(library.english.VoiceEncoder())
    assert ROWS[row] == pytest.approx((narrow + wide, 2 * narrow + 4 * wide), rel=0.02)
