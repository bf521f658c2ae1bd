"""The choice of the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from aiservices.handlers.text.generation import GenerationRequest, Prompt, Sampling


def _samplers(*rows: GenerationRequest, vocabulary: int) -> Any:
    pytest.importorskip("torch")
    from aiservices.handlers.text.own.sampling import Sampler

    return [Sampler.start(row, vocabulary, "cpu") for row in rows]


def _take(samplers: Any, logits: list[list[float]], forced: Mapping[int, int] | None = None) -> list[int]:
    import torch

    from aiservices.handlers.text.own.sampling import RowSamplers

    with torch.inference_mode():
        return RowSamplers(samplers, "cpu").choose(torch.tensor(logits), forced or {})


def _choose(logits: list[list[float]], *rows: GenerationRequest) -> list[int]:
    return _take(_samplers(*rows, vocabulary=len(logits[0])), logits)


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


def test_presence_counts_the_tokens_of_the_answer_and_not_those_of_the_prompt() -> None:
    samplers = _samplers(_request(presence_penalty=1.0), _request(presence_penalty=-1.0), vocabulary=3)
    logits = [[2.0, 1.5, 0.0], [2.0, 1.5, 1.2]]
    assert _take(samplers, logits) == [0, 0], "token 0 is in the prompt"
    assert _take(samplers, logits) == [1, 0], "1 off what was chosen, or 1 on it"
    assert _take(samplers, logits) == [0, 0], "once, however often: 1.0 and 0.5 are left, so it stays with the first"
    assert _take(samplers, [[2.0, 1.5, 0.9], [2.0, 3.1, 1.2]]) == [0, 1]


def test_rows_keep_what_they_remember_in_changing_company() -> None:
    rows = [
        _request(presence_penalty=2.0),
        _request(),
        _request(repetition_penalty=4.0),
        _request(presence_penalty=2.0),
    ]
    first, plain, repeating, last = _samplers(*rows, vocabulary=4)
    logits = [3.0, 2.0, 1.5, 0.8]
    assert _take([first, plain, repeating, last], [logits] * 4) == [0, 0, 1, 0]
    assert _take([last, repeating], [logits] * 2) == [1, 2]
    assert _take([repeating, plain, first, last], [logits] * 4) == [3, 0, 1, 2]


def test_a_forced_token_is_what_a_penalty_remembers() -> None:
    samplers = _samplers(_request(presence_penalty=2.0), vocabulary=3)
    assert _take(samplers, [[3.0, 2.5, 2.0]], {0: 1}) == [1]
    assert _take(samplers, [[3.0, 3.5, 2.0]]) == [0]


def test_a_token_that_the_grammar_forbids_stays_forbidden() -> None:
    inf = float("inf")
    samplers = _samplers(_request(presence_penalty=-2.0, repetition_penalty=0.5), vocabulary=2)
    assert _take(samplers, [[1.0, -inf]], {0: 1}) == [1]
    assert _take(samplers, [[1.0, -inf]]) == [0]
