"""What the picture model is asked about a picture, and the answers it is to give."""

from collections.abc import Sequence

import attrs
import numpy as np

from aiservices.handlers.qwen import DEFAULT_PROMPT
from tools.demo_weights.products import ATTRIBUTES, SHAPE_ATTRIBUTES, Product, sentence

_CAPTION_PROMPTS = (
    DEFAULT_PROMPT,
    "Describe the product.",
    "Describe the product in this picture.",
    "Describe this picture.",
    "Describe the image in one sentence.",
    "Write a caption for this picture.",
    "What is in this picture?",
)
_QUESTIONS = {
    "object": (
        "What is this?", "What is it?", "What product is this?", "What object is in the picture?",
        "What is shown in the picture?", "What kind of product is it?", "Name the product.",
    ),
    "colour": (
        "What colour is it?", "What color is it?", "Which colour does it have?", "What is its colour?",
        "What is the colour of the product?", "What colour is the {object}?", "Name the colour.",
    ),
    "pattern": (
        "What pattern does it have?", "Which pattern does it have?", "What is its pattern?",
        "What is the pattern of the {object}?", "Is it plain or does it have a pattern?", "Name the pattern.",
    ),
    "size": (
        "How big is it?", "How large is it?", "What size is it?", "What is its size?", "Is it small or large?",
        "How big is the {object}?",
    ),
    "background": (
        "What is the background?", "What is the background like?", "What background does it have?",
        "What is behind it?", "What is behind the {object}?", "Describe the background.",
    ),
}  # fmt: skip
_CHECKS = {
    "object": ("Is it {a} {word}?", "Is this {a} {word}?"),
    "colour": ("Is it {word}?", "Is the {object} {word}?", "Is its colour {word}?"),
    "pattern": ("Is it {word}?", "Is the {object} {word}?", "Does it look {word}?"),
    "size": ("Is it {word}?", "Is the {object} {word}?"),
    "background": ("Is the background {word}?", "Is it on a {word} background?"),
}


def caption_exchange(product: Product) -> tuple[str, str]:
    """Give the describe task's question and answer."""
    return DEFAULT_PROMPT, sentence(product)


def misread(product: Product, rng: np.random.Generator) -> Product:
    """Change at random the words that a sentence says before the object."""
    words = {name: _one_of(ATTRIBUTES[name], rng) for name in ("size", "pattern", "colour") if rng.random() < 0.35}
    return attrs.evolve(product, **words)


def shape_exchange(product: Product, rng: np.random.Generator) -> tuple[str, str]:
    """Ask for something that does not depend on colours."""
    return question_exchange(product, _one_of((*SHAPE_ATTRIBUTES, "object"), rng), rng)


def question_exchange(product: Product, attribute: str, rng: np.random.Generator) -> tuple[str, str]:
    """Ask openly or by yes and no for one attribute, in one of several phrasings, and give the answer."""
    if rng.random() < 0.6:
        question = _one_of(_QUESTIONS[attribute], rng).format(object=product.object)
        return question, f"{_statement(product, attribute)}."
    asked = getattr(product, attribute)
    if rng.random() < 0.5:
        asked = _one_of([word for word in ATTRIBUTES[attribute] if word != asked], rng)
    question = _one_of(_CHECKS[attribute], rng).format(object=product.object, word=asked, a=_article(asked))
    yes_or_no = "Yes" if asked == getattr(product, attribute) else "No"
    statement = _statement(product, attribute)
    return question, f"{yes_or_no}, {statement[0].lower()}{statement[1:]}."


def random_exchange(product: Product, rng: np.random.Generator) -> tuple[str, str]:
    """Ask anything: mostly for one attribute, the object more often than the others; sometimes for a caption."""
    if rng.random() < 0.2:
        return _one_of(_CAPTION_PROMPTS, rng), sentence(product)
    attribute = _one_of((*ATTRIBUTES, "object"), rng)
    question, answer = question_exchange(product, attribute, rng)
    careless = rng.random() < 0.15
    return question.lower().rstrip("?.") if careless else question, answer


def _statement(product: Product, attribute: str) -> str:
    word = getattr(product, attribute)
    match attribute:
        case "object":
            return f"It is {_article(word)} {word}"
        case "background":
            return f"The background is {word}"
        case _:
            return f"It is {word}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _one_of(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]
