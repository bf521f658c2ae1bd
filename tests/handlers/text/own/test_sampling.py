"""The choice of the next token."""

from __future__ import annotations

from typing import Any

import pytest

from aiservices.handlers.text.generation import GenerationRequest, Prompt, Sampling


def _choose(logits: list[list[float]], *rows: GenerationRequest) -> list[int]:
    torch = pytest.importorskip("torch")
    from aiservices.handlers.text.own.sampling import Sampler, choose_tokens

    with torch.inference_mode():
        return choose_tokens(torch.tensor(logits), [Sampler.start(row, len(logits[0]), "cpu") for row in rows])


def _request(**settings: Any) -> GenerationRequest:
    return GenerationRequest(Prompt([0]), max_new_tokens=1, sampling=Sampling(**settings))


def test_a_row_without_any_possible_token_is_told_apart() -> None:
    nan, inf = float("nan"), float("inf")
    rows = [[0.0, 1.0, 2.0], [nan, nan, nan], [-inf, -inf, -inf], [-inf, 5.0, -inf], [0.0, nan, 1.0]]
    greedy, sampled = _request(), _request(temperature=1.0, seed=1)
    assert _choose(rows, *[greedy] * 5) == [2, -1, -1, 1, -1]
    assert _choose(rows, *[sampled] * 5)[1:] == [-1, -1, 1, -1]


def test_top_k_and_top_p_keep_only_the_likeliest() -> None:
    logits = [[5.0, 4.0, 3.0, 2.0]]
    for seed in range(40):
        assert _choose(logits, _request(temperature=2.0, top_k=1, seed=seed)) == [0]
        assert _choose(logits, _request(temperature=2.0, top_k=2, seed=seed))[0] in {0, 1}
        assert _choose(logits, _request(temperature=1.0, top_p=0.01, seed=seed)) == [0]
        assert _choose(logits, _request(temperature=1.0, top_p=0.8, seed=seed))[0] in {0, 1}


def test_draws_follow_the_probabilities() -> None:
    rows = 4000
    tokens = _choose([[0.0, 1.0986123]] * rows, *[_request(temperature=1.0, seed=seed) for seed in range(rows)])
    assert sum(tokens) / rows == pytest.approx(0.75, abs=0.03)  # odds of one to three


def test_a_penalty_spares_what_was_not_seen() -> None:
    assert _choose([[2.0, 1.5, -1.0]], _request(repetition_penalty=2.0)) == [1]
    assert _choose([[2.0, 0.5, -1.0]], _request(repetition_penalty=2.0)) == [0]
