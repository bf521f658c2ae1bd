"""Draw the example pictures: products of held-out pairs, by the code and with seeds that training never used."""

from pathlib import Path

import attrs
import numpy as np

from tools.demo_weights.drawing import draw
from tools.demo_weights.products import Product


@attrs.frozen
class Example:
    """One example picture; width and height in pixels."""

    product: Product
    width: int
    height: int
    seed: int

    @property
    def file_name(self) -> str:
        """Say what is on the picture."""
        p = self.product
        words = f"{p.size} {p.pattern} {p.colour} {p.object} on {p.background}"
        return f"{words.lower().replace(' ', '-')}.png"


EXAMPLES = (
    Example(Product("mug", "red", "striped", "large", "wooden"), 320, 320, 70_001),
    Example(Product("toy car", "grey", "plain", "large", "light blue"), 480, 240, 70_002),
    Example(Product("backpack", "black", "dotted", "small", "beige"), 320, 400, 70_003),
)


EXAMPLE_FOLDER = Path(__file__).parents[2] / "examples"


def draw_examples(folder: Path = EXAMPLE_FOLDER) -> None:
    """Write the example pictures as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for example in EXAMPLES:
        image = draw(example.product, example.width, example.height, np.random.default_rng(example.seed))
        image.save(folder / example.file_name, optimize=True)
