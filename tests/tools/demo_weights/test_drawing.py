import numpy as np
import pytest

from tools.demo_weights.drawing import draw, random_canvas
from tools.demo_weights.pictures import picture
from tools.demo_weights.products import COLOURS, OBJECTS, PATTERNS, Product


def test_the_same_seed_draws_the_same_picture() -> None:
    first, second = (picture((3, 5), held_out=True) for _ in range(2))
    other = picture((3, 6), held_out=True)

    assert first[0] == second[0]
    assert first[1].tobytes() == second[1].tobytes()
    assert first[1].tobytes() != other[1].tobytes()


@pytest.mark.parametrize("object_", OBJECTS)
def test_every_object_is_drawn_inside_its_canvas(object_: str) -> None:
    rng = np.random.default_rng(1)
    product = Product(object_, "red", "plain", "large", "white")

    pixels = np.asarray(draw(product, 200, 120, rng)).astype(int)

    edge = np.concatenate([pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])
    assert pixels.shape == (120, 200, 3)
    assert np.ptp(edge, axis=0).max() < 40, "the object is cut off at the side"
    reddish = (pixels[..., 0] > 150) & (pixels[..., 1] < 90)
    assert reddish.mean() > 0.02


def test_colours_and_patterns_change_the_picture() -> None:
    drawn = {
        draw(Product("mug", colour, pattern, "small", "beige"), 96, 96, np.random.default_rng(2)).tobytes()
        for colour in COLOURS
        for pattern in PATTERNS
    }

    assert len(drawn) == len(COLOURS) * len(PATTERNS)


def test_canvases_are_at_most_twice_as_long_as_wide() -> None:
    rng = np.random.default_rng(4)
    sizes = [random_canvas(rng) for _ in range(500)]

    assert all(min(size) >= 199 and max(size) <= 601 for size in sizes)
    assert all(max(size) / min(size) < 2.02 for size in sizes)
    assert any(width > 1.8 * height for width, height in sizes)
    assert any(height > 1.8 * width for width, height in sizes)
