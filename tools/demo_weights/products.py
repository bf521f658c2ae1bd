"""What can be on a drawn picture, in which combinations, and the sentence that says so."""

import re
from collections.abc import Iterator

import attrs
import numpy as np

OBJECTS = (
    "mug", "teapot", "lamp", "armchair", "T-shirt", "dress", "sock", "boot", "hat", "backpack",
    "handbag", "umbrella", "kite", "teddy bear", "toy car", "flower pot", "camera", "guitar", "ball", "notebook",
)  # fmt: skip
COLOURS = (
    "red", "orange", "yellow", "green", "turquoise", "blue",
    "purple", "pink", "brown", "black", "white", "grey",
)  # fmt: skip
PATTERNS = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "black", "grey", "beige", "light blue", "wooden", "grassy")

SHAPE_ATTRIBUTES = ("object", "pattern", "size")
"""What a picture still shows when its colours are changed."""

_CAMOUFLAGE = {
    ("white", "white"), ("black", "black"), ("grey", "grey"), ("brown", "wooden"), ("green", "grassy"),
}  # fmt: skip
_SENTENCE = re.compile(
    r"A (?P<size>{}) (?P<pattern>{}) (?P<colour>{}) (?P<object>{}) on a (?P<background>{}) background\.".format(
        *("|".join(map(re.escape, words)) for words in (SIZES, PATTERNS, COLOURS, OBJECTS, BACKGROUNDS))
    )
)


@attrs.frozen
class Product:
    """One drawn product; every field is a word of the vocabularies above."""

    object: str
    colour: str
    pattern: str
    size: str
    background: str


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "object": OBJECTS,
    "colour": COLOURS,
    "pattern": PATTERNS,
    "size": SIZES,
    "background": BACKGROUNDS,
}


def sentence(product: Product) -> str:
    """Say in one sentence everything that is on the picture."""
    p = product
    return f"A {p.size} {p.pattern} {p.colour} {p.object} on a {p.background} background."


def parse(text: str) -> Product | None:
    """Read the attributes back from a sentence, None if it is not one."""
    match = _SENTENCE.fullmatch(text.strip())
    return Product(**match.groupdict()) if match else None


def is_held_out(object_: str, colour: str) -> bool:
    """Tell whether this pair of object and colour is kept for evaluation and never trained on.

    Every object misses one colour in training and every second one two, 30 of 240 pairs; every colour stays
    with 17 objects or more. What an unseen pair tests is composition: shape and colour have to be read apart.
    """
    row, column = OBJECTS.index(object_), COLOURS.index(colour)
    return column == (5 * row + row // 12) % 12 or (row % 2 == 0 and column == (5 * row + 7 + row // 12) % 12)


def pairs(*, held_out: bool) -> Iterator[tuple[str, str]]:
    """Give the (object, colour) pairs of one side of the split."""
    return ((o, c) for o in OBJECTS for c in COLOURS if is_held_out(o, c) == held_out)


def random_product(rng: np.random.Generator, *, held_out: bool) -> Product:
    """Choose a product of one side of the split; its background never has the colour of the object."""
    choices = list(pairs(held_out=held_out))
    object_, colour = choices[rng.integers(len(choices))]
    backgrounds = [b for b in BACKGROUNDS if (colour, b) not in _CAMOUFLAGE]
    return Product(
        object=object_,
        colour=colour,
        pattern=str(rng.choice(PATTERNS)),
        size=str(rng.choice(SIZES)),
        background=str(rng.choice(backgrounds)),
    )
