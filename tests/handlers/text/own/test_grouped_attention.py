"""A decoding step's attention: what transformers' own gives, without its copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")

from tests.handlers.text.own.loading import load_engine
from tests.handlers.tiny_models import write_mistral


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("heads", "key_heads", "tokens"), [(8, 2, 1), (8, 8, 1), (8, 2, 5)])
def test_it_is_that_of_transformers(heads: int, key_heads: int, tokens: int, masked: bool) -> None:
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from aiservices.handlers.text.own.grouped_attention import grouped_attention

    dice = torch.Generator().manual_seed(1)
    query = torch.randn(3, heads, tokens, 16, generator=dice)
    key, value = (torch.randn(3, key_heads, 40, 16, generator=dice) for _ in range(2))
    mask = (torch.arange(40) <= torch.tensor([[20], [39], [7]])).view(3, 1, 1, 40) if masked else None
    module: Any = torch.nn.Module()
    module.num_key_value_groups = heads // key_heads
    module.is_causal = True
    ours, _ = grouped_attention(module, query, key, value, mask, scaling=0.3)
    theirs, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    assert ours.shape == theirs.shape == (3, tokens, heads, 16)
    torch.testing.assert_close(ours, theirs)


def test_decoders_use_it_unless_another_was_asked_for(tmp_path: Path) -> None:
    from aiservices.handlers.text.own.grouped_attention import NAME

    folder = write_mistral(tmp_path)
    assert load_engine(folder)._backbone.model.config._attn_implementation == NAME
    assert load_engine(folder, attn_implementation="eager")._backbone.model.config._attn_implementation == "eager"
