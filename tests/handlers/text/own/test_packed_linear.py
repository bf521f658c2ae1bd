"""Packed weights: the tokens of transformers' own layers, the plain weights gone, rows apart in eight bits."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
import torch
from torch import nn

from aiservices.errors import ConfigError
from aiservices.handlers.text.engine import generate
from aiservices.handlers.text.own.packed_linear import Int8Linear, PackedLinear, pack_weights
from tests.handlers.text.own.loading import load_engine, tokens_alone
from tests.handlers.text.own.test_engine import requests, tokens_of
from tests.handlers.tiny_models import write_mistral

ONEDNN: Any = torch.backends.mkldnn
pytestmark = pytest.mark.skipif(
    not ONEDNN.is_available(), reason="needs a torch with oneDNN, as its builds for x86 are"
)


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiservices.handlers.text.own.packed_linear._LEAST_WEIGHTS", 0)


class _Layer(nn.Module):
    """Named as transformers names them."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        for name, size in (("q_proj", 48), ("k_proj", 16), ("v_proj", 16), ("gate_proj", 40), ("up_proj", 40)):
            setattr(self, name, nn.Linear(32, size, bias=bias))
        self.down_proj = nn.Linear(40, 32, bias=not bias)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts: Any = self
        # Out of order, and some twice: nothing in the joined layers hangs on it.
        key, value, query = parts.k_proj(states), parts.v_proj(states), parts.q_proj(states)
        up, gate = parts.up_proj(states), parts.gate_proj(states)
        return query, key, value, parts.k_proj(states), parts.down_proj(gate * up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 32), (3, 5, 32), (7, 32)])
def test_packed_layers_compute_what_plain_ones_do(dtype: Any, bias: bool, shape: tuple[int, ...]) -> None:
    layer = _Layer(bias).to(dtype)
    states = torch.randn(shape).to(dtype)
    with torch.inference_mode():
        expected = layer(states)
        pack_weights(layer, layer, "cpu")
        for ours, theirs in zip(layer(states), expected, strict=True):
            tolerance = 1e-5 if dtype is torch.float32 else 3e-2
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert not any(type(module) is nn.Linear for module in layer.modules())


def test_a_part_of_joined_layers_never_answers_for_another_input() -> None:
    layer: Any = _Layer(bias=False)
    with torch.inference_mode():
        first, second = torch.randn(2, 32), torch.randn(2, 32)
        expected = layer.k_proj(second)
        pack_weights(layer, layer, "cpu")
        layer.q_proj(first)
        torch.testing.assert_close(layer.k_proj(second), expected, rtol=1e-5, atol=1e-5)


def test_small_layers_in_float32_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiservices.handlers.text.own.packed_linear._LEAST_WEIGHTS", 33 * 48)
    layer: Any = _Layer(bias=False)
    pack_weights(layer, layer, "cpu")
    kinds = {name: type(module).__name__ for name, module in layer.named_children()}
    assert kinds["down_proj"] == "Linear"
    assert kinds["q_proj"] == "_Part", "with the other two it is large enough"


def test_plain_weights_are_given_back(tmp_path: Path) -> None:
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(write_mistral(tmp_path), dtype=torch.float32)
    plain = [weakref.ref(module.weight) for module in model.modules() if type(module) is nn.Linear]
    assert len(plain) == 15
    pack_weights(model, model.get_decoder(), "cpu")
    gc.collect()
    assert not any(reference() is not None for reference in plain)


def test_tokens_are_those_of_transformers_generate_with_plain_weights(tmp_path: Path) -> None:
    import transformers

    folder = write_mistral(tmp_path)
    auto: Any = transformers.AutoModelForCausalLM
    plain = auto.from_pretrained(folder, dtype=torch.float32).eval()
    engine = load_engine(folder)
    kinds = {type(module).__name__ for module in engine._backbone.model.modules()}
    assert {"PackedLinear", "_Part"} <= kinds
    assert "Linear" not in kinds
    expected = []
    for request in requests():
        ids = torch.tensor([request.prompt.token_ids])
        answer = plain.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        expected.append(tuple(answer[0, ids.shape[1] :].tolist()))
    assert tokens_of(generate(engine, requests())) == expected


def test_eight_bits_come_close_and_a_row_does_not_see_the_others() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(256, 96)
    layer = Int8Linear(plain.weight, plain.bias)
    rows = torch.randn(9, 256) * torch.logspace(-3, 3, 9)[:, None]
    with torch.inference_mode():
        together = layer(rows)
        alone = torch.cat([layer(rows[number : number + 1]) for number in range(9)])
        exact = plain(rows)
        assert torch.equal(layer(torch.zeros(1, 256)), plain.bias[None])
        assert layer(torch.full((1, 256), torch.nan)).isnan().all()
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    without = exact - plain.bias
    error = (together - exact).norm(dim=-1) / without.norm(dim=-1)
    assert error.max() < 0.02


def test_eight_bits_are_of_the_decoder_and_not_of_the_head(tmp_path: Path) -> None:
    engine = load_engine(write_mistral(tmp_path), weights="int8")
    model = engine._backbone.model
    assert isinstance(model.lm_head, PackedLinear)
    kinds = [type(module) for module in model.model.modules()]
    assert kinds.count(PackedLinear) == 0
    assert kinds.count(Int8Linear) == 4, "two layers with an o_proj and a down_proj; the rest is joined"
    assert isinstance(model.model.layers[0].self_attn.q_proj._shared.whole, Int8Linear)
    assert tokens_of(generate(engine, requests())) == tokens_alone(engine, requests())


def test_eight_bits_are_refused_where_they_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _Layer(bias=False)
    with pytest.raises(ConfigError, match="int8 needs a CPU"):
        pack_weights(layer, layer, "cuda:0", "int8")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="oneDNN"):
        pack_weights(layer, layer, "cpu", "int8")
    pack_weights(layer, layer, "cpu")
    assert type(layer.q_proj) is nn.Linear
