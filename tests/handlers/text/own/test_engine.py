"""The in-flight decoder on tiny random weights: what a row becomes does not depend on its company."""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
from aiservices.errors import JobFailed, OutOfMemory
from aiservices.handler import Task
from aiservices.handlers.listing import build_schema
from aiservices.handlers.text.engine import generate
from aiservices.handlers.text.generation import Generated, GenerationRequest, Prompt, Sampling
from aiservices.handlers.text.grammar import Grammar
from aiservices.handlers.text.json_tokens import read_tokenizer
from tests.handlers.text.own.loading import load_engine, same_model, tokens_alone
from tests.handlers.text_fakes import FakeContext, step_to_end, tasks_for
from tests.handlers.tiny_models import MISTRAL_TOKENS, byte_tokenizer, write_mistral

POISON = 300
"""A token whose embedding is not a number in the poisoned model."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mistral(tmp_path_factory.mktemp("mistral"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """The engine whose weights the others share."""
    return load_engine(folder)


@pytest.fixture
def engine(model: Any) -> Iterator[Any]:
    engine = same_model(model)
    yield engine
    assert not len(engine), "a test left rows behind"


def prompt(seed: int, length: int) -> list[int]:
    numbers = random.Random(seed)
    return [1, *(numbers.randrange(5, 400) for _ in range(length - 1))]


def requests(count: int = 16) -> list[GenerationRequest]:
    """Different prompts, lengths and limits."""
    return [
        GenerationRequest(Prompt(prompt(seed, 4 + 11 * seed % 70)), max_new_tokens=6 + 7 * seed % 40)
        for seed in range(count)
    ]


def tokens_of(results: Sequence[Generated | Exception]) -> list[tuple[int, ...]]:
    return [result.token_ids if isinstance(result, Generated) else () for result in results]


@pytest.fixture(scope="module")
def alone(model: Any) -> list[tuple[int, ...]]:
    """What each of :func:`requests` becomes by itself."""
    return tokens_alone(model, requests())


def test_greedy_tokens_are_those_of_transformers_generate(model: Any, alone: list[tuple[int, ...]]) -> None:
    import torch

    for request, tokens in zip(requests(), alone, strict=True):
        ids = torch.tensor([request.prompt.token_ids])
        expected = model._backbone.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        assert tokens == tuple(expected[0, ids.shape[1] :].tolist())
    assert len({token for tokens in alone for token in tokens}) > 50, "weights too dull to prove anything"


def test_a_batch_of_sixteen_gives_the_tokens_of_each_row_alone(engine: Any, alone: list[tuple[int, ...]]) -> None:
    assert tokens_of(generate(engine, requests())) == alone


def test_rows_that_join_late_or_see_others_leave_keep_their_tokens(engine: Any, alone: list[tuple[int, ...]]) -> None:
    tasks = tasks_for(requests())
    joins = {0: tasks[:3], 2: tasks[3:4], 9: tasks[4:11], 10: tasks[11:]}
    results = step_to_end(engine, tasks, before_step=lambda step: engine.admit(joins.get(step, [])))
    assert tokens_of(results) == alone


@pytest.mark.parametrize("chunk_tokens", [16, 50])
def test_prompts_read_in_pieces_give_the_same_tokens(
    model: Any, alone: list[tuple[int, ...]], chunk_tokens: int
) -> None:
    assert tokens_of(generate(same_model(model, chunk_tokens), requests())) == alone


def test_eager_attention_gives_the_same_tokens(folder: Path, alone: list[tuple[int, ...]]) -> None:
    eager = load_engine(folder, attn_implementation="eager")
    assert tokens_of(generate(eager, requests())) == alone


def test_narrow_types_run_too(folder: Path) -> None:
    for dtype in ("bfloat16", "float16"):
        assert all(generate(load_engine(folder, dtype=dtype), requests()[:4]))


def test_a_long_prompt_does_not_stop_the_rows_that_run(model: Any) -> None:
    engine = same_model(model, chunk_tokens=16)
    running, long = tasks_for(
        [
            GenerationRequest(Prompt(prompt(1, 8)), max_new_tokens=30),
            GenerationRequest(Prompt(prompt(2, 200)), max_new_tokens=2),
        ]
    )
    engine.admit([running])
    engine.step()
    engine.admit([long])
    ended = [engine.step() for _ in range(11)]
    assert not any(ended), "200 tokens in pieces of 16 take 13 steps"
    row = engine._running[0]
    assert len(row.tokens) == 13  # two from the first step, one from each other
    step_to_end(engine, [running, long])


def test_an_evicted_row_leaves_its_companions_tokens_alone(engine: Any, alone: list[tuple[int, ...]]) -> None:
    tasks = tasks_for(requests())
    engine.admit(tasks)
    out = tasks[2:16:4]

    def evict(step: int) -> None:
        if step == 5:
            engine.evict(out)
            engine.evict(out)  # a second time is ignored

    staying = [task for task in tasks if task not in out]
    results = step_to_end(engine, staying, before_step=evict)
    assert tokens_of(results) == [alone[tasks.index(task)] for task in staying]


def test_rows_are_evicted_while_they_wait_and_while_their_prompt_is_read(
    model: Any, alone: list[tuple[int, ...]]
) -> None:
    engine = same_model(model, chunk_tokens=16)
    reading, waiting, kept = tasks_for(
        [GenerationRequest(Prompt(prompt(9, 100)), max_new_tokens=5), requests()[1], requests()[2]]
    )
    engine.admit([reading, waiting, kept])
    engine.step()
    engine.evict([reading, waiting])
    assert len(engine) == 1
    assert tokens_of(step_to_end(engine, [kept])) == [alone[2]]


def test_one_of_several_prompts_being_read_is_evicted(engine: Any, alone: list[tuple[int, ...]]) -> None:
    engine._prompts._chunk_tokens = 160
    first, second = tasks_for([requests()[5], requests()[6]])
    engine.admit([first, second])
    backbone, read = engine._backbone, engine._backbone.read

    def evict_while_reading(prompts: Any, columns: int) -> Any:
        engine.evict([first])
        return read(prompts, columns)

    backbone.read = evict_while_reading
    assert tokens_of(step_to_end(engine, [second])) == [alone[6]]


def test_a_seed_gives_the_same_tokens_alone_and_in_company(engine: Any) -> None:
    sampled = [
        attrs.evolve(request, sampling=Sampling(1.3, 1.0 if number % 3 else 0.8, number % 2 * 30, seed=number))
        for number, request in enumerate(requests())
    ]
    mixed = [*sampled[:10], *requests()[10:]]
    together = tokens_of(generate(engine, mixed))
    assert together == [generate(engine, [request])[0].token_ids for request in mixed]
    assert (
        together[0] != generate(engine, [attrs.evolve(mixed[0], sampling=mixed[0].sampling.but(seed=99))])[0].token_ids
    )


def test_penalties_and_seeds_hold_in_changing_company(engine: Any) -> None:
    kinds = [
        Sampling(presence_penalty=1.5),
        Sampling(1.1, 0.9, 40, 1.2, 0.7, seed=3),
        Sampling(repetition_penalty=1.3),
        Sampling(0.8, seed=4),
        Sampling(presence_penalty=-0.5),
    ]
    asked = [attrs.evolve(request, sampling=kinds[number % 5]) for number, request in enumerate(requests())]
    alone = [generate(engine, [request])[0].token_ids for request in asked]
    tasks = tasks_for(asked)
    joins = {0: tasks[:3], 2: tasks[3:4], 9: tasks[4:11], 10: tasks[11:]}
    results = step_to_end(engine, tasks, before_step=lambda step: engine.admit(joins.get(step, [])))
    assert tokens_of(results) == alone
    assert tokens_of(results) != tokens_of(generate(engine, requests()))


def test_a_presence_penalty_is_that_of_vllm_and_openai(model: Any, engine: Any) -> None:
    import torch

    request = attrs.evolve(requests()[4], sampling=Sampling(presence_penalty=2.0), max_new_tokens=25)
    ids = list(request.prompt.token_ids)
    answer: list[int] = []
    with torch.inference_mode():
        while len(answer) < 25:
            logits = model._backbone.model(torch.tensor([ids + answer])).logits[0, -1].float()
            logits[list(set(answer))] -= 2.0
            answer.append(int(logits.argmax()))
    assert generate(engine, [request])[0].token_ids == tuple(answer)


def test_without_a_seed_answers_vary(engine: Any) -> None:
    request = attrs.evolve(requests()[3], sampling=Sampling(2.0), max_new_tokens=12)
    assert len({result.token_ids for result in generate(engine, [request] * 4)}) > 1


@pytest.fixture
def poisoned(folder: Path) -> Any:
    import torch

    engine = load_engine(folder)
    with torch.no_grad():
        engine._backbone.model.get_input_embeddings().weight[POISON] = float("nan")
    return engine


def test_a_row_whose_logits_are_not_numbers_fails_alone(poisoned: Any, alone: list[tuple[int, ...]]) -> None:
    healthy = [POISON not in request.prompt.token_ids for request in requests()]
    harmless = list(itertools.compress(requests(), healthy))
    bad = GenerationRequest(Prompt([1, 7, POISON, 8]), max_new_tokens=9)
    tasks = tasks_for([harmless[0], bad, *harmless[1:]])
    poisoned.admit(tasks)
    results = step_to_end(poisoned, tasks)
    failure = results.pop(1)
    assert isinstance(failure, JobFailed)
    expected = [
        tokens for request, tokens in zip(requests(), alone, strict=True) if POISON not in request.prompt.token_ids
    ]
    kept = [tokens for tokens in expected if POISON not in tokens]
    assert [tokens for tokens in tokens_of(results) if tokens in expected] == kept


def test_a_row_that_breaks_in_mid_generation_leaves_nothing_behind(engine: Any, alone: list[tuple[int, ...]]) -> None:
    import torch

    tasks = tasks_for([*requests()[:4], attrs.evolve(requests()[4], max_new_tokens=40)])
    decode = engine._backbone.decode

    def break_last_row(tokens: Any, cache: Any, deltas: Any) -> Any:
        logits = decode(tokens, cache, deltas)
        if len(cache.lengths) == 5 and cache.lengths[4] > len(tasks[4].item.prompt.token_ids) + 3:
            logits[4] = float("nan")
            for layer in cache.layers:
                layer.keys[4], layer.values[4] = torch.nan, torch.nan
        return logits

    engine._backbone.decode = break_last_row
    engine.admit(tasks)
    late = tasks_for([requests()[15]])

    def join_later(step: int) -> None:
        if step == 6:
            engine.admit(late)

    results = step_to_end(engine, [*tasks, *late], before_step=join_later)
    assert isinstance(results[4], JobFailed)
    assert tokens_of([*results[:4], results[5]]) == [*alone[:4], alone[15]]


class _Refusing:
    """A grammar whose every row fails: to start with, at its third token, or when it looks at its budget."""

    complete = False

    def __init__(self, fails_at: str) -> None:
        self.fails_at = fails_at
        self.forced: collections.deque[int] = collections.deque()
        self.taken = 0
        tokenizer = byte_tokenizer(MISTRAL_TOKENS)
        self.matcher = Grammar.compile(build_schema(["x"]), read_tokenizer(tokenizer, 425, [2])).matcher

    def start(self) -> _Refusing:
        if self.fails_at == "start":
            raise ValueError("no such grammar")
        return self

    def check_budget(self, remaining_tokens: int) -> None:
        if self.fails_at == "check_budget":
            raise ValueError("no idea how much is left")
        self.forced.append(7)

    def keep_small(self, allowed: Any) -> None:
        """There is no hurry."""

    def advance(self, token: int) -> None:
        self.taken += 1
        if self.taken == 3:
            raise ValueError("left its grammar")

    def to_bytes(self, tokens: Sequence[int]) -> bytes:
        return b"x" * len(tokens)


@pytest.mark.parametrize("fails_at", ["start", "advance", "check_budget"])
def test_a_row_whose_grammar_raises_fails_alone(engine: Any, alone: list[tuple[int, ...]], fails_at: str) -> None:
    grammar: Any = _Refusing(fails_at)
    tasks = tasks_for([*requests()[:3], attrs.evolve(requests()[3], grammar=grammar)])
    engine.admit(tasks)
    results = step_to_end(engine, tasks)
    assert isinstance(results[3], ValueError)
    assert tokens_of(results[:3]) == alone[:3]


def test_a_prompt_that_cannot_be_read_fails_alone(engine: Any, alone: list[tuple[int, ...]]) -> None:
    tasks = tasks_for(requests()[:6])
    prepare = engine._backbone.prepare
    calls = []

    def refuse_third(group: Sequence[Prompt]) -> Any:
        calls.append(len(group))
        if tasks[2].item.prompt in group:
            raise RuntimeError("this picture cannot be seen")
        return prepare(group)

    engine._backbone.prepare = refuse_third
    engine.admit(tasks)
    results = step_to_end(engine, tasks)
    assert isinstance(results.pop(2), RuntimeError)
    assert tokens_of(results) == [*alone[:2], *alone[3:6]]
    assert calls == [6, 1, 1, 1, 1, 1, 1]


def test_a_prompt_too_large_for_the_device_fails_alone(engine: Any, alone: list[tuple[int, ...]]) -> None:
    import torch

    tasks = tasks_for(requests()[:2])
    read = engine._backbone.read

    def refuse_second(prompts: Any, columns: int) -> Any:
        if len(tasks[1].item.prompt.token_ids) in prompts.lengths:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(prompts, columns)

    engine._backbone.read = refuse_second
    engine.admit(tasks)
    results = step_to_end(engine, tasks)
    assert isinstance(results[1], OutOfMemory)
    assert tokens_of(results[:1]) == alone[:1]


def test_a_broken_device_is_not_blamed_on_a_row(model: Any) -> None:
    import torch

    engine = same_model(model)
    engine.admit(tasks_for(requests()[:2]))

    def break_down(prompts: Any, columns: int) -> Any:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    engine._backbone.read = break_down
    with pytest.raises(torch.AcceleratorError):
        engine.step()


class _Gone(FakeContext):
    """A listener that has hung up."""

    def emit(self, chunk: Any) -> None:
        raise RuntimeError("nobody listens")


def test_a_listener_that_raises_ends_its_own_row_only(engine: Any, alone: list[tuple[int, ...]]) -> None:
    tasks = [*tasks_for(requests()[:2]), Task(requests()[2], _Gone())]
    engine.admit(tasks)
    results = step_to_end(engine, tasks)
    assert isinstance(results[2], RuntimeError)
    assert tokens_of(results[:2]) == alone[:2]


def test_the_stream_joins_up_to_the_text_and_progress_only_grows(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiservices.handlers.text.row.EMIT_EVERY_S", 0.0)
    tasks = tasks_for(requests())
    engine.admit(tasks)
    for task, result in zip(tasks, step_to_end(engine, tasks), strict=True):
        assert isinstance(result, Generated)
        context = task.context
        assert isinstance(context, FakeContext)
        assert "".join(context.chunks) == result.text
        assert result.text == engine._tokenizer.decode(list(result.token_ids)).rstrip("\ufffd")
        assert context.fractions == sorted(context.fractions)
        assert all(0 < fraction <= 1 for fraction in context.fractions)
        assert len(context.fractions) == len(result.token_ids) - 1
        assert context.counted == [("tokens", 1)] * len(result.token_ids)


def test_quick_rows_report_once_and_sum_up(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiservices.handlers.text.row.EMIT_EVERY_S", 3600.0)
    task = tasks_for([requests()[2]])[0]
    engine.admit([task])
    (result,) = step_to_end(engine, [task])
    assert isinstance(task.context, FakeContext)
    assert isinstance(result, Generated)
    assert len(task.context.chunks) <= 2
    assert sum(amount for _, amount in task.context.counted) == len(result.token_ids)
    assert "".join(task.context.chunks) == result.text


def test_an_end_token_stops_the_row_and_stays_out_of_the_text(model: Any, alone: list[tuple[int, ...]]) -> None:
    tokens = alone[2]
    end = tokens[5]
    assert end not in tokens[:5]
    engine = same_model(model, stop_ids={2, end})
    (result,) = generate(engine, [requests()[2]])
    assert result.finish_reason == "stop"
    assert result.token_ids == tokens[:6]
    assert result.text == engine._tokenizer.decode(list(tokens[:5])).rstrip("\ufffd")
    assert result.usage.completion_tokens == 6
    assert result.usage.prompt_tokens == len(requests()[2].prompt.token_ids)


def test_an_answer_ends_before_a_stop_text(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiservices.handlers.text.row.EMIT_EVERY_S", 0.0)
    free = [attrs.evolve(requests()[number], max_new_tokens=30) for number in range(6)]
    whole = generate(engine, free)
    stops = [result.text[len(result.text) // 2 :][:3] for result in whole]
    tasks = tasks_for(
        [attrs.evolve(request, stop=("never there", stop)) for request, stop in zip(free, stops, strict=True)]
    )
    engine.admit(tasks)
    for task, result, free_result, stop in zip(tasks, step_to_end(engine, tasks), whole, stops, strict=True):
        assert isinstance(result, Generated)
        assert isinstance(task.context, FakeContext)
        assert result.finish_reason == "stop"
        assert result.text == "".join(task.context.chunks) == free_result.text[: free_result.text.index(stop)]
        taken = len(result.token_ids)
        assert result.token_ids == free_result.token_ids[:taken]
        assert result.usage.completion_tokens == taken == sum(amount for _, amount in task.context.counted)
        assert stop in engine._tokenizer.decode(list(result.token_ids))
        assert stop not in engine._tokenizer.decode(list(result.token_ids[:-1])).rstrip("\ufffd"), "went on for longer"


def test_reset_forgets_every_row_and_the_next_ones_are_as_ever(engine: Any, alone: list[tuple[int, ...]]) -> None:
    engine.admit(tasks_for(requests()))
    for _ in range(4):
        engine.step()
    engine.admit(tasks_for(requests()))
    engine.reset()
    assert len(engine) == 0
    assert engine.step() == []
    assert engine._cache.layers == []
    assert tokens_of(generate(engine, requests()[:3])) == alone[:3]


def test_nothing_is_held_once_the_last_row_has_left(engine: Any) -> None:
    generate(engine, requests())
    assert engine._cache.layers == []
    assert engine._running == []


def test_a_repetition_penalty_is_that_of_transformers(model: Any, engine: Any) -> None:
    import torch

    request = attrs.evolve(requests()[4], sampling=Sampling(repetition_penalty=1.4), max_new_tokens=25)
    ids = torch.tensor([request.prompt.token_ids])
    expected = model._backbone.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=25,
        do_sample=False,
        repetition_penalty=1.4,
        pad_token_id=0,
    )
    free = requests()[5]
    penalised, other = generate(engine, [request, free])
    assert penalised.token_ids == tuple(expected[0, ids.shape[1] :].tolist())
    assert other.token_ids == generate(engine, [free])[0].token_ids
