import itertools

import numpy as np
import pytest

from tools.demo_weights.dialogue import caption_exchange, question_exchange
from tools.demo_weights.products import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    PATTERNS,
    SIZES,
    Product,
    pairs,
    parse,
    random_product,
    sentence,
)


def test_held_out_pairs_are_disjoint_from_training_and_leave_every_word_in_it() -> None:
    trained, held_out = (set(pairs(held_out=side)) for side in (False, True))

    assert not trained & held_out
    assert trained | held_out == set(itertools.product(OBJECTS, COLOURS))
    assert 0.10 <= len(held_out) / len(trained | held_out) <= 0.15
    assert {object_ for object_, _ in trained} == {object_ for object_, _ in held_out} == set(OBJECTS)
    assert {colour for _, colour in trained} == {colour for _, colour in held_out} == set(COLOURS)


@pytest.mark.parametrize("held_out", [True, False])
def test_random_products_keep_to_their_side_and_off_their_own_background(held_out: bool) -> None:
    rng = np.random.default_rng(0)
    products = [random_product(rng, held_out=held_out) for _ in range(300)]

    assert {(p.object, p.colour) for p in products} <= set(pairs(held_out=held_out))
    assert all(p.colour != p.background for p in products)


def test_every_sentence_reads_back_as_its_product() -> None:
    words = itertools.product(OBJECTS, COLOURS, PATTERNS, SIZES, BACKGROUNDS)

    assert all(parse(sentence(Product(*chosen))) == Product(*chosen) for chosen in words)


@pytest.mark.parametrize("text", ["", "A mug.", "A large striped red mug on a white background. A mug."])
def test_other_text_is_no_sentence(text: str) -> None:
    assert parse(text) is None


def test_answers_state_the_attribute_that_was_asked_for() -> None:
    rng = np.random.default_rng(1)
    product = Product("umbrella", "blue", "dotted", "small", "wooden")

    assert caption_exchange(product)[1] == "A small dotted blue umbrella on a wooden background."
    for attribute in ATTRIBUTES:
        answers = [question_exchange(product, attribute, rng)[1] for _ in range(20)]
        assert all(getattr(product, attribute) in answer for answer in answers)
        assert any(answer.startswith("Yes, ") for answer in answers)
        assert any(answer.startswith("No, ") for answer in answers)
