"""Draw a product on a background; the same seed gives the same picture."""

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tools.demo_weights.products import Product
from tools.demo_weights.shapes import Part, Points, parts_of

Rgb = tuple[int, int, int]

_COLOURS: dict[str, Rgb] = {
    "red": (208, 28, 36), "orange": (246, 130, 18), "yellow": (252, 218, 36), "green": (34, 148, 58),
    "turquoise": (48, 200, 196), "blue": (32, 78, 204), "purple": (124, 46, 166), "pink": (246, 140, 188),
    "brown": (112, 66, 32), "black": (26, 26, 28), "white": (248, 248, 246), "grey": (136, 138, 142),
}  # fmt: skip
_BACKGROUNDS: dict[str, Rgb] = {
    "white": (244, 244, 243), "black": (20, 20, 22), "grey": (172, 172, 174), "beige": (226, 204, 166),
    "light blue": (172, 208, 242), "wooden": (168, 120, 74), "grassy": (104, 172, 70),
}  # fmt: skip
_EXTENT = {"small": (0.50, 0.58), "large": (0.82, 0.95)}
"""Longest side of the object, as a share of the canvas's shorter side."""
_MARK_MIX: dict[str, tuple[Rgb, float]] = {"white": ((0, 0, 0), 0.32), "grey": ((0, 0, 0), 0.65)}
"""What a pattern's marks are mixed from besides the colour itself, and its share; white at 0.8 unless given here."""
_OVERSAMPLING = 2


@attrs.frozen
class _Paints:
    """What the roles of a shape's parts are painted with."""

    body: Rgb
    pattern: Rgb
    trim: Rgb
    outline: Rgb
    dark: Rgb = (44, 44, 48)
    light: Rgb = (236, 236, 232)


def draw(product: Product, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Draw a product near the centre of a canvas of the given size in pixels; RGB."""
    canvas = _background(product.background, width, height, rng)
    extent = float(rng.uniform(*_EXTENT[product.size])) * min(width, height)
    parts = _placed(parts_of(product.object), extent, rng)
    layer = _object_layer(parts, product, extent, rng)
    left, top = _position(canvas.size, layer.size, rng)
    _shadow(canvas, left, top, layer)
    canvas.paste(layer, (left, top), layer)
    return canvas


def random_canvas(rng: np.random.Generator, *, shortest: int = 200, longest: int = 600) -> tuple[int, int]:
    """Choose width and height in pixels: a third of the canvases square, the others up to 2:1 either way."""
    aspect = 1.0 if rng.random() < 1 / 3 else float(np.exp(rng.uniform(-np.log(2), np.log(2))))
    short = int(rng.integers(shortest, int(longest / max(aspect, 1 / aspect)) + 1))
    return (round(short * aspect), short) if aspect >= 1 else (short, round(short / aspect))


def _jittered(colour: Rgb, amount: int, rng: np.random.Generator) -> Rgb:
    red, green, blue = np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 0, 255)
    return int(red), int(green), int(blue)


def _mixed(colour: Rgb, other: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a * (1 - share) + b * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _paints(product: Product, rng: np.random.Generator) -> _Paints:
    body = _jittered(_COLOURS[product.colour], 10, rng)
    return _Paints(
        body=body,
        # White and grey are marked with darker greys, so that their mean still tells them apart.
        pattern=_mixed(body, *_MARK_MIX.get(product.colour, ((255, 255, 255), 0.8))),
        trim=_mixed(body, (0, 0, 0), 0.25) if product.colour != "black" else (70, 70, 74),
        outline=_mixed(body, (0, 0, 0), 0.6) if product.colour != "black" else (96, 96, 100),
    )


def _background(name: str, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    base = np.array(_jittered(_BACKGROUNDS[name], 8, rng), dtype=np.float32)
    light = np.linspace(float(rng.uniform(-8, 8)), float(rng.uniform(-8, 8)), height, dtype=np.float32)
    pixels = np.broadcast_to(base + light[:, None, None], (height, width, 3)).copy()
    if name == "wooden":
        pixels *= _planks(width, height, rng)
    elif name == "grassy":
        pixels *= _blades(width, height, rng)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _planks(width: int, height: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Give the brightness of horizontal planks with dark joints, shape (height, 1 or width, 1)."""
    plank = max(8, round(min(width, height) / float(rng.uniform(3, 4.5))))
    rows = np.arange(height) + int(rng.integers(plank))
    tone = rng.uniform(0.88, 1.08, height // plank + 2)[rows // plank]
    tone = np.where(rows % plank < max(1, plank // 12), 0.55, tone)
    return tone.astype(np.float32)[:, None, None]


def _blades(width: int, height: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Give the brightness of blades of grass: noise of upright strokes, shape (height, width, 1)."""
    stroke_x, stroke_y = max(2, width // 80), max(5, height // 24)
    coarse = rng.uniform(0.72, 1.18, (height // stroke_y + 1, width // stroke_x + 1))
    return coarse.repeat(stroke_y, 0).repeat(stroke_x, 1)[:height, :width, None].astype(np.float32)


def _placed(parts: list[Part], extent: float, rng: np.random.Generator) -> list[Part]:
    """Scale to pixels, mirror at random, turn a little, and move into a box that starts at (1, 1)."""
    turn = np.radians(rng.uniform(-7, 7))
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix * extent @ np.diag([float(rng.choice((-1, 1))) * rng.uniform(0.94, 1.0), rng.uniform(0.94, 1.0)])
    moved = [Part(part.role, part.points @ matrix.T) for part in parts]
    low = np.concatenate([part.points for part in moved]).min(axis=0)
    return [Part(part.role, part.points - low + 1) for part in moved]


def _object_layer(parts: list[Part], product: Product, extent: float, rng: np.random.Generator) -> Image.Image:
    """Paint the parts with colour and pattern on a transparent layer of their own size."""
    paints = _paints(product, rng)
    high = np.concatenate([part.points for part in parts]).max(axis=0)
    width, height = (int(np.ceil(side)) + 2 for side in high)
    size = (width * _OVERSAMPLING, height * _OVERSAMPLING)
    cloth = _cloth(product.pattern, size, extent * _OVERSAMPLING, paints, rng)
    layer = Image.new("RGBA", size)
    pen = ImageDraw.Draw(layer)
    line = max(2, round(extent * _OVERSAMPLING / 45))
    for part in parts:
        corners = [(float(x), float(y)) for x, y in part.points * _OVERSAMPLING]
        if part.role == "body":
            mask = Image.new("1", size)
            ImageDraw.Draw(mask).polygon(corners, fill=1)
            layer.paste(cloth, (0, 0), mask)
        else:
            pen.polygon(corners, fill={"trim": paints.trim, "dark": paints.dark, "light": paints.light}[part.role])
        if part.role != "dark":
            pen.line([*corners, corners[0]], fill=paints.outline, width=line, joint="curve")
    return layer.reduce(_OVERSAMPLING)


def _cloth(
    pattern: str, size: tuple[int, int], extent: float, paints: _Paints, rng: np.random.Generator
) -> Image.Image:
    """Give the painted surface of an object whose longest side is extent, in pixels."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(np.float32) / np.float32(extent)
    x, y = x + np.float32(rng.uniform(0, 1)), y + np.float32(rng.uniform(0, 1))
    marked = _MARKS[pattern](x, y, rng)
    return Image.fromarray(
        np.where(marked[..., None], *(np.array(paint, dtype=np.uint8) for paint in (paints.pattern, paints.body)))
    )


def _plain(x: Points, y: Points, rng: np.random.Generator) -> NDArray[np.bool_]:
    return np.zeros(x.shape, dtype=np.bool_)


def _striped(x: Points, y: Points, rng: np.random.Generator) -> NDArray[np.bool_]:
    angle = rng.choice((0.0, 45.0, 90.0, 135.0)) + rng.uniform(-6, 6)
    along = x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))
    return np.asarray(along / rng.uniform(0.19, 0.23) % 1 < 0.42)


def _dotted(x: Points, y: Points, rng: np.random.Generator) -> NDArray[np.bool_]:
    spacing = rng.uniform(0.19, 0.22)
    row = np.floor(y / spacing)
    across = (x / spacing + 0.5 * (row % 2)) % 1 - 0.5
    down = (y / spacing) % 1 - 0.5
    return np.asarray(across**2 + down**2 < 0.30**2)


def _checked(x: Points, y: Points, rng: np.random.Generator) -> NDArray[np.bool_]:
    side = rng.uniform(0.15, 0.18)
    return np.asarray((np.floor(x / side) + np.floor(y / side)) % 2 == 0)


_MARKS = {"plain": _plain, "striped": _striped, "dotted": _dotted, "checked": _checked}


def _position(canvas: tuple[int, int], layer: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Choose the layer's corner: the object near the centre, freer along the canvas's longer side."""
    corner = []
    for room, side in zip(canvas, layer, strict=True):
        free = (room - side) / 2
        shift = min(abs(free), 0.05 * room if room == min(canvas) else 0.10 * room)
        corner.append(round(free + float(rng.uniform(-shift, shift))))
    return corner[0], corner[1]


def _shadow(canvas: Image.Image, left: int, top: int, layer: Image.Image) -> None:
    """Darken an ellipse under the object, so that it stands on its background."""
    width, height = layer.size
    mask = Image.new("L", canvas.size)
    x0, x1, y = left + width * 0.08, left + width * 0.92, top + height
    ImageDraw.Draw(mask).ellipse((x0, y - height * 0.05, x1, y + height * 0.03), fill=70)
    canvas.paste((0, 0, 0), (0, 0), mask)
