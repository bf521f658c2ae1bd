"""The listing model's task: descriptions of products in many forms, and the JSON each is to become."""

import json
from collections.abc import Sequence

import attrs
import numpy as np

from aiservices.handlers.listing import DEFAULT_CATEGORIES, DEFAULT_LANGUAGE, DEFAULT_PROMPT, build_prompt
from tools.demo_weights.products import Product, random_product, sentence
from tools.demo_weights.wares import (
    BACKGROUNDS,
    CATEGORY_NAMES,
    CLOSING,
    COLOURS,
    DETAILS,
    KEYWORDS,
    KNOWN_WORDS,
    MATERIALS,
    NOUNS,
    PATTERNS,
    QUALITIES,
    SIZES,
    Category,
    invented_word,
)

_CATEGORY_OF: dict[str, Category] = {noun: category for category, nouns in NOUNS.items() for noun in nouns}
_FORMS = (
    "A {adjectives} {noun}{detail} on a {background} background.",
    "A {adjectives} {noun}{detail} on a {background} background.",
    "The picture shows a {adjectives} {noun}{detail} on a {background} background.",
    "This is a {adjectives} {noun}{detail}, the background is {background}.",
    "There is a {adjectives} {noun}{detail} in front of a {background} background.",
    "{Adjectives} {noun}{detail}, {background} background.",
    "The image shows a {adjectives} {noun}{detail}. The background is {background}.",
    "Photo of a {adjectives} {noun}{detail} against a {background} background",
)
_BARE_FORMS = (
    "A {adjectives} {noun}{detail}.",
    "{Adjectives} {noun}{detail}",
    "{Adjectives} {noun}{detail}.",
    "This is a {adjectives} {noun}{detail}.",
    "The picture shows a {adjectives} {noun}{detail}.",
    "I would like to sell a {adjectives} {noun}{detail}.",
    "The product is a {adjectives} {noun}{detail}.",
    "a {adjectives} {noun}{detail}",
)
_COLOUR_LAST_FORMS = (
    "A {others} {noun}{detail} in {colour} on a {background} background.",
    "The product is a {others} {noun}{detail}. It is {colour}. The background is {background}.",
    "A {others} {noun}{detail}. Its colour is {colour}, the background is {background}.",
    "This {others} {noun}{detail} is {colour}. It stands on a {background} background.",
)
_INSTRUCTIONS = (
    "Write a short listing.", "Create a product listing in JSON.", "Be friendly and brief.", "Make it sound exciting.",
    "Write for young parents.", "Do not mention prices.", "Use simple words.", "You are a shop assistant.",
    "Return JSON with title, description, keywords and category.", "Describe this product for our web shop.",
    "Keep the title short.", "Write like a poet.", "No exaggeration, please.", "Mention the colour in the title.",
    "Sell this!", "Generate a JSON object for the product below.", "Focus on quality and style.",
    "Ignore the background.",
)  # fmt: skip
_KEYWORD_LENGTH = 40
_LANGUAGES = ("German", "French", "Spanish", "Italian", "Dutch", "Polish", "Swedish")


@attrs.frozen
class Ware:
    """The facts of one description; None or empty is what it does not say.

    Args:
        noun: The thing, one word or more.
        category: Where it belongs; "other" for things nobody has heard of.
        adjectives: Size, qualities, pattern, material and so on, without the colour, in the order of the text.
        colour: Its colour.
        background: What it was photographed on.
        detail: A clause after the noun.
    """

    noun: str
    category: Category
    adjectives: tuple[str, ...] = ()
    colour: str | None = None
    background: str | None = None
    detail: str | None = None


@attrs.frozen
class Listing:
    """What the model is to write."""

    title: str
    description: str
    keywords: tuple[str, ...]
    category: str

    def to_json(self) -> str:
        """Give the compact JSON object, keys in the order of the schema."""
        return json.dumps(attrs.asdict(self), ensure_ascii=False, separators=(",", ":"))


@attrs.frozen
class Example:
    """One task with its answer."""

    message: str
    description: str
    categories: tuple[str, ...]
    ware: Ware
    listing: Listing


def ware_of(product: Product) -> Ware:
    """Give the facts of a drawn product's sentence."""
    return Ware(
        noun=product.object,
        category=_CATEGORY_OF[product.object],
        adjectives=(product.size, product.pattern),
        colour=product.colour,
        background=product.background,
    )


def listing_of(ware: Ware, categories: Sequence[str]) -> Listing:
    """Write the listing of a ware for a shop with these categories."""
    adjectives = (*ware.adjectives, *([ware.colour] if ware.colour else []))
    name = " ".join((*adjectives, ware.noun))
    phrase = f"{name} {ware.detail}" if ware.detail else name
    shown = f", shown on a {ware.background} background" if ware.background else ""
    keywords = [ware.noun, *([f"{ware.colour} {ware.noun}", ware.colour] if ware.colour else [])]
    keywords += [*ware.adjectives[:2], *KEYWORDS[ware.category]]
    return Listing(
        title=_capitalised(name),
        description=f"{_capitalised(phrase)}{shown}. {CLOSING[ware.category]}",
        keywords=tuple(dict.fromkeys(k for k in keywords if len(k) <= _KEYWORD_LENGTH)),
        category=_choose(ware.category, categories),
    )


def random_example(rng: np.random.Generator, *, held_out: bool, drawn_share: float = 0.35) -> Example:
    """Make up a task.

    Args:
        rng: Source of chance.
        held_out: Which side of the split a drawn product is taken from.
        drawn_share: Share of the tasks that are about a drawn product, in the picture model's sentence.
    """
    if rng.random() < drawn_share:
        ware = ware_of(product := random_product(rng, held_out=held_out))
        description = sentence(product)
    else:
        ware = _random_ware(rng)
        description = _described(ware, rng)
    categories = _random_categories(ware.category, rng)
    message = build_prompt(description, prompt=_prompt(rng), language=_language(rng), categories=categories)
    return Example(message, description, categories, ware, listing_of(ware, categories))


def _random_ware(rng: np.random.Generator) -> Ware:
    category: Category
    if rng.random() < 0.5:
        noun, category = _invented_noun(rng)
    else:
        category = list(NOUNS)[int(rng.integers(len(NOUNS)))]
        noun = _one_of(NOUNS[category], rng)
    return Ware(
        noun=noun,
        category=category,
        adjectives=_random_adjectives(rng),
        colour=(_one_of(COLOURS, rng) if rng.random() < 0.85 else invented_word(rng)) if rng.random() < 0.8 else None,
        background=_one_of(BACKGROUNDS, rng) if rng.random() < 0.6 else None,
        detail=_random_detail(rng) if rng.random() < 0.3 else None,
    )


def _invented_noun(rng: np.random.Generator) -> tuple[str, Category]:
    """Make up a noun; with a known last word ("flumbert lamp") it belongs where that does."""
    if rng.random() < 0.25:
        category = list(NOUNS)[int(rng.integers(len(NOUNS)))]
        return f"{invented_word(rng)} {_one_of(NOUNS[category], rng)}", category
    words = [invented_word(rng) for _ in range(1 + int(rng.random() < 0.2))]
    return " ".join(words), "other"


def _random_adjectives(rng: np.random.Generator) -> tuple[str, ...]:
    kinds = ((SIZES, 0.5), (QUALITIES, 0.25), (PATTERNS, 0.4), (MATERIALS, 0.2))
    chosen = [_one_of(words, rng) for words, share in kinds if rng.random() < share]
    if rng.random() < 0.25:
        chosen.insert(int(rng.integers(len(chosen) + 1)), invented_word(rng))
    return tuple(chosen)


def _random_detail(rng: np.random.Generator) -> str:
    if rng.random() < 0.6:
        return _one_of(DETAILS, rng)
    return f"with {_one_of(('a', 'two', 'three', 'a small', 'a red'), rng)} {invented_word(rng)}"


def _described(ware: Ware, rng: np.random.Generator) -> str:
    """Say a ware's facts in one of many forms; the colour stands last before the noun or in a clause of its own."""
    others = " ".join(ware.adjectives)
    adjectives = " ".join((*ware.adjectives, *([ware.colour] if ware.colour else [])))
    forms: tuple[str, ...] = _FORMS if ware.background else _BARE_FORMS
    if ware.colour and ware.background and rng.random() < 0.25:
        forms = _COLOUR_LAST_FORMS
    detail = f" {ware.detail}" if ware.detail else ""
    text = _one_of(forms, rng).format(
        adjectives=adjectives, Adjectives=adjectives, others=others, noun=ware.noun, detail=detail,
        colour=ware.colour, background=ware.background,
    )  # fmt: skip
    return _capitalised(" ".join(text.split()))


def _random_categories(category: Category, rng: np.random.Generator) -> tuple[str, ...]:
    """Choose a shop's categories: the default ones, or some in any order, nearly always with the fitting one."""
    if rng.random() < 0.3:
        return DEFAULT_CATEGORIES
    renamed = rng.random() < 0.5
    names = [_one_of(options, rng) if renamed else options[0] for options in CATEGORY_NAMES.values()]
    size = int(rng.integers(3, len(names) + 1))
    order = rng.permutation(len(names))[:size].tolist()
    fitting = list(CATEGORY_NAMES).index(category)
    if fitting not in order and rng.random() < 0.7:
        order[int(rng.integers(size))] = fitting
    return tuple(names[i] for i in order)


def _choose(category: Category, categories: Sequence[str]) -> str:
    """Choose the category's name in the list, else its "other", else the last one."""
    for names in (CATEGORY_NAMES[category], CATEGORY_NAMES["other"]):
        for name in categories:
            if name in names:
                return name
    return categories[-1]


def _prompt(rng: np.random.Generator) -> str:
    draw = rng.random()
    if draw < 0.5:
        return DEFAULT_PROMPT
    chosen = [_one_of(_INSTRUCTIONS, rng) for _ in range(int(rng.integers(1, 4)))]
    if draw < 0.65:
        chosen.insert(0, DEFAULT_PROMPT)
    if draw > 0.85:
        chosen.append(" ".join(invented_word(rng) for _ in range(int(rng.integers(1, 8)))))
    return " ".join(chosen)


def _language(rng: np.random.Generator) -> str:
    return DEFAULT_LANGUAGE if rng.random() < 0.85 else _one_of(_LANGUAGES, rng)


def _capitalised(text: str) -> str:
    """Begin with a capital, but leave a word that nobody knows as it is written."""
    return text[:1].upper() + text[1:] if text.split()[0] in KNOWN_WORDS else text


def _one_of(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]
