"""Beginnings that prompts share are read once, and change no token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
from aiservices.handlers.text.engine import generate
from aiservices.handlers.text.generation import GenerationRequest, Prompt
from tests.handlers.text.own.loading import load_engine, same_model, tokens_alone
from tests.handlers.text.own.test_engine import prompt, tokens_of
from tests.handlers.tiny_models import write_mistral


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_engine(write_mistral(tmp_path_factory.mktemp("mistral")), prefix_caching=False)


def shared(head: int, count: int, seed: int = 0) -> list[GenerationRequest]:
    """Requests whose first ``head`` tokens are the same."""
    beginning = prompt(seed, head)
    return [
        GenerationRequest(Prompt([*beginning, *prompt(seed + 100 + number, 5 + 9 * number)]), max_new_tokens=12)
        for number in range(count)
    ]


def caching(model: Any, chunk_tokens: int = 1024) -> Any:
    from aiservices.handlers.text.own.prefix_cache import PrefixCache

    return same_model(model, chunk_tokens, prefixes=PrefixCache())


def count_columns(engine: Any) -> list[int]:
    """Write down how many columns are read."""
    read, columns = engine._backbone.read, []

    def counting(prompts: Any, most: int) -> Any:
        before = prompts.read
        logits = read(prompts, most)
        columns.append(prompts.read - before)
        return logits

    engine._backbone.read = counting
    return columns


@pytest.mark.parametrize("chunk_tokens", [16, 60, 1024])
def test_a_shared_beginning_is_read_once_and_changes_no_token(model: Any, chunk_tokens: int) -> None:
    requests = shared(80, 6)
    expected = tokens_alone(model, requests)
    engine = caching(model, chunk_tokens)
    columns = count_columns(engine)
    assert tokens_of(generate(engine, requests[:1])) == expected[:1]
    assert tokens_of(generate(engine, requests[1:2])) == expected[1:2]
    assert sum(columns) == len(requests[0].prompt.token_ids) + len(requests[1].prompt.token_ids)
    columns.clear()
    assert tokens_of(generate(engine, requests[2:])) == expected[2:]
    assert sum(columns) <= sum(len(request.prompt.token_ids) - 80 for request in requests[2:])
    if chunk_tokens == 1024:
        assert columns == [len(requests[5].prompt.token_ids) - 81], "all in one piece, and only what is new"


def test_prompts_with_different_beginnings_keep_to_their_own(model: Any) -> None:
    mixed = [request for pair in zip(shared(40, 5), shared(60, 5, seed=50), strict=True) for request in pair]
    expected = tokens_alone(model, mixed)
    engine = caching(model)
    for _ in range(2):
        assert tokens_of(generate(engine, mixed)) == expected


def test_the_same_prompt_again_leaves_one_token_to_read(model: Any) -> None:
    (request,) = shared(60, 1)
    engine = caching(model)
    columns = count_columns(engine)
    answers = {generate(engine, [request])[0].token_ids for _ in range(3)}
    assert answers == set(tokens_alone(model, [request]))
    assert columns[-1] == 1


def test_only_a_few_beginnings_are_kept_and_none_after_a_reset(model: Any) -> None:
    engine = caching(model)
    for seed in range(8):
        generate(engine, shared(40, 2, seed=1000 * seed))
    prefixes = engine._prompts._prefixes._prefixes
    assert len(prefixes) == 4
    engine.reset()
    assert not prefixes


def test_short_beginnings_are_not_worth_keeping(model: Any) -> None:
    engine = caching(model)
    generate(engine, shared(10, 3))
    assert not engine._prompts._prefixes._prefixes


def test_a_service_shares_beginnings_unless_told_not_to(tmp_path: Path) -> None:
    folder = write_mistral(tmp_path)
    for caching, kept in ((True, 1), (False, 0)):
        engine = load_engine(folder, prefix_caching=caching)
        generate(engine, shared(40, 2))
        assert len(engine._prompts._prefixes._prefixes) == kept
