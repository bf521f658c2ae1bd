"""Answers held to a schema: complete within any budget that is allowed, whatever the model wants to write."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

pytest.importorskip("llguidance", reason="needs llguidance: pip install 'aiservices[mistral]'")
from aiservices.errors import JobFailed, ServiceError
from aiservices.handlers.listing import DEFAULT_CATEGORIES, Listing, build_schema
from aiservices.handlers.text.grammar import Grammar
from aiservices.handlers.text.json_tokens import read_tokenizer
from tests.handlers.json_schemas import check, random_schema
from tests.handlers.tiny_models import MISTRAL_TOKENS, byte_tokenizer, metaspace_tokenizer

END = 2


ODD_CATEGORIES = ("a", "ab", 'Größe "XL"', "日本語カテゴリー", "back\\slash", "O" * 80)


def greedy_merger() -> Tokenizer:
    """A tokenizer whose tokens run across quotes, commas and characters: one may end three strings at once."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(MISTRAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = '{"title":"a","description":"b","keywords":["a","b","c","d","e"],"category":"Other"}'
    crossing = [
        '","a","b","c","',
        '"},{"a":"',
        'é","é","€',
        '"],"category":"Home',
        'x","description":"y","keywords":["z","',
    ]
    tokenizer.train_from_iterator([text, *crossing] * 10, trainer)
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": lambda: byte_tokenizer(MISTRAL_TOKENS),
    "metaspace": lambda: metaspace_tokenizer(MISTRAL_TOKENS),
    "merger": greedy_merger,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def view(request: pytest.FixtureRequest) -> Any:
    tokenizer = TOKENIZERS[request.param]()
    return read_tokenizer(tokenizer, tokenizer.get_vocab_size() + 5, [END])


def allowed(run: Any) -> list[int]:
    bits = np.frombuffer(run.matcher.compute_bitmask(), dtype=np.int32).copy()
    run.keep_small(bits)
    return [token for token in range(len(bits) * 32) if bits[token // 32] >> token % 32 & 1]


def ramble(grammar: Grammar, budget: int, choose: Callable[[list[int]], int]) -> bytes:
    """Write an answer as the engine does, with a model that takes whatever ``choose`` says."""
    run = grammar.start()
    tokens: list[int] = []
    while not run.complete:
        run.check_budget(budget - len(tokens))
        token = run.forced.popleft() if run.forced else choose(allowed(run))
        run.advance(token)
        tokens.append(token)
        assert len(tokens) <= budget, f"not closed in time: {run.to_bytes(tokens)!r}"
    return run.to_bytes(tokens)


def preferences(view: Any) -> list[Callable[[bytes], bool]]:
    """What a model may be bent on: ending strings, never ending them, half characters, escapes, long tokens."""
    return [
        lambda token: True,
        lambda token: b'"' in token,
        lambda token: b'"' not in token,
        lambda token: any(byte >= 0xC0 for byte in token),
        lambda token: b"\\" in token,
        lambda token: len(token) > 3,
        lambda token: any(byte in b',[{-."' for byte in token),
    ]


@pytest.mark.parametrize("categories", [DEFAULT_CATEGORIES, ODD_CATEGORIES, ("x",)], ids=["shop", "odd", "single"])
def test_every_answer_is_complete_within_its_budget(view: Any, categories: tuple[str, ...]) -> None:
    grammar = Grammar.compile(build_schema(categories), view)
    written = [view.decode([token]) for token in range(view.tokenizer.vocab_size)]
    for seed in range(24):
        dice = random.Random(seed)
        wanted = preferences(view)[seed % 7]

        def choose(tokens: list[int], dice: random.Random = dice, wanted: Callable[[bytes], bool] = wanted) -> int:
            liked = [token for token in tokens if wanted(written[token])] if dice.random() < 0.8 else []
            return dice.choice(liked or tokens)

        text = ramble(grammar, grammar.least_tokens + dice.randrange(80), choose)
        listing = msgspec.json.decode(text, type=Listing)
        assert listing.category in categories


def answer_some_schema(view: Any, seed: int) -> None:
    """Draw a schema and a bent of the model, and judge its answers within tight and wider budgets."""
    dice = random.Random(seed)
    schema = random_schema(dice)
    grammar = Grammar.compile(schema, view)
    written = [view.decode([token]) for token in range(view.tokenizer.vocab_size)]
    wanted = dice.choice(preferences(view))

    def choose(tokens: list[int]) -> int:
        liked = [token for token in tokens if wanted(written[token])] if dice.random() < 0.8 else []
        return dice.choice(liked or tokens)

    for spare in (0, dice.randrange(20), dice.randrange(200)):
        check(ramble(grammar, grammar.least_tokens + spare, choose).decode(), schema)


@pytest.mark.parametrize("item", [{"type": "integer"}, {"type": ["number", "null"]}], ids=["whole", "or null"])
def test_a_comma_after_a_number_begins_no_item_that_is_one_too_many(view: Any, item: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": item, "maxItems": 40}}}
    grammar = Grammar.compile(schema, view)
    written = [view.decode([token]) for token in range(view.tokenizer.vocab_size)]
    for seed in range(40):
        dice = random.Random(seed)

        def choose(tokens: list[int], dice: random.Random = dice) -> int:
            liked = [token for token in tokens if written[token] in (b",", b"-", b"5")]
            return dice.choice(liked or tokens)

        check(ramble(grammar, grammar.least_tokens + seed, choose).decode(), schema)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_answers_of_any_schema_are_complete_within_their_budget(view: Any, seed: int) -> None:
    answer_some_schema(view, seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=1000, deadline=None)
def test_answers_of_a_thousand_schemas_are_complete_within_their_budget(view: Any, seed: int) -> None:
    answer_some_schema(view, seed)


def test_no_token_begins_one_more_item_than_there_is_budget_for() -> None:
    view = read_tokenizer(greedy_merger(), greedy_merger().get_vocab_size(), [END])
    written = [view.decode([token]) for token in range(view.tokenizer.vocab_size)]
    jumping = {token for token, text in enumerate(written) if text == b'"},{"a":"'}
    assert jumping, "the tokenizer has no token that ends an object and begins another"
    assert view.separators >= 4
    item = {"type": "object", "properties": {name: {"type": "string"} for name in "abcde"}}
    schema = {"type": "object", "properties": {"l": {"type": "array", "items": item, "minItems": 1, "maxItems": 60}}}
    grammar = Grammar.compile(schema, view)
    jumped = 0
    letter, quote = written.index(b"q"), written.index(b'"')
    for spare in range(90):
        dice = random.Random(spare)

        def choose(tokens: list[int], dice: random.Random = dice) -> int:
            """End an object as soon as it may end, its strings seldom."""
            liked = [*jumping, quote, letter] if dice.random() < 0.2 else [*jumping, letter]
            return next((token for token in liked if token in tokens), tokens[0])

        text = ramble(grammar, grammar.least_tokens + 12 * spare, choose)
        check(text.decode(), schema)
        jumped += text.count(b"},{")
    assert jumped > 20, "with room, items are begun"


def test_a_tight_budget_cuts_a_string_but_leaves_the_model_its_say_in_each(view: Any) -> None:
    grammar = Grammar.compile(build_schema(DEFAULT_CATEGORIES), view)
    letter = next(token for token in range(view.tokenizer.vocab_size) if view.decode([token]) == b"q")
    text = ramble(grammar, grammar.least_tokens, lambda tokens: letter if letter in tokens else min(tokens, key=int))
    listing = msgspec.json.decode(text, type=Listing)
    assert set(listing.title) == set(listing.description) == {"q"}
    assert all(set(keyword) == {"q"} for keyword in listing.keywords)


def test_with_room_to_spare_nothing_is_forced(view: Any) -> None:
    grammar = Grammar.compile(build_schema(DEFAULT_CATEGORIES), view)
    run = grammar.start()
    text = b'{"title":"Red mug","description":"A mug.","keywords":["red","mug","cup"],"category":"Home & Kitchen"}'
    for token in view.encode(text):
        run.check_budget(10_000)
        assert not run.forced
        run.advance(token)
    assert run.complete


@pytest.mark.parametrize(
    "bad",
    [
        b'{"title":""',
        b'{"title":"' + b"a" * 81,
        b'{"title":"a\n',
        b'{"title":"a\\n',
        b'{"title":"a\\u0041',
        b'{"title":"a\x7f',
        b'{ "title"',
        b'{"description"',
        b'{"title":"a","description":"b","keywords":["a","b"]',
        b'{"title":"a","description":"b","keywords":["a","b","c"],"category":"Nowhere"',
        b'{"title":"a","description":"b","keywords":["1","2","3","4","5","6","7","8",',
    ],
)
def test_what_the_schema_does_not_allow_cannot_be_written(view: Any, bad: bytes) -> None:
    run = Grammar.compile(build_schema(DEFAULT_CATEGORIES), view).start()
    with pytest.raises(JobFailed, match="left its grammar"):
        list(map(run.advance, view.encode(bad)))


def test_rows_of_one_grammar_do_not_know_each_other(view: Any) -> None:
    grammar = Grammar.compile(build_schema(DEFAULT_CATEGORIES), view)
    first, second = grammar.start(), grammar.start()
    (brace, *_) = view.encode(b'{"title":"')
    first.advance(brace)
    assert brace in allowed(second)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("device", ["cpu", "cpu:0"], ids=["numpy", "as on a GPU"])
@pytest.mark.parametrize("parallel_from", [0, 10**6])
def test_masks_fall_on_constrained_rows_only(
    view: Any, rows: int, device: str, parallel_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiservices.handlers.text.grammar._PARALLEL_FROM", parallel_from)
    torch = pytest.importorskip("torch")
    from aiservices.handlers.text.grammar import TokenMasks

    grammar = Grammar.compile(build_schema(DEFAULT_CATEGORIES), view)
    masks = TokenMasks(view.tokenizer.vocab_size, device)
    runs = [(2 * row, grammar.start()) for row in range(rows)]
    logits = torch.zeros(2 * rows, view.tokenizer.vocab_size)
    masks.apply(logits, runs)
    for row in range(2 * rows):
        open_tokens = torch.nonzero(logits[row] == 0).flatten().tolist()
        assert open_tokens == (list(range(view.tokenizer.vocab_size)) if row % 2 else allowed(runs[0][1]))
    masks.apply(logits, [])


def test_a_vocabulary_without_some_letter_is_refused_at_once() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(special_tokens=list(MISTRAL_TOKENS), show_progress=False)
    tokenizer.train_from_iterator(["mug"], trainer)
    with pytest.raises(ServiceError, match="has no tokens for"):
        read_tokenizer(tokenizer, tokenizer.get_vocab_size(), [END])


def test_a_tokenizer_of_an_unknown_kind_is_refused_with_the_reason() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "mug": 1}, unk_token="<unk>"))
    with pytest.raises(ServiceError, match="do not support"):
        read_tokenizer(tokenizer, 2, [0])
