"""The silhouettes of the drawn products, as polygons in a unit box (x to the right, y down)."""

from collections.abc import Callable, Sequence
from typing import Literal

import attrs
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Role = Literal["body", "trim", "dark", "light"]


@attrs.frozen(eq=False)
class Part:
    """One polygon of a product.

    Args:
        role: What it is painted with: body (colour and pattern), trim (a darker shade of the colour),
            dark (nearly black) or light (nearly white).
        points: Corners, shape (n, 2), in the unit box.
    """

    role: Role
    points: Points


def polygon(*corners: tuple[float, float]) -> Points:
    """Give the polygon with these corners."""
    return np.array(corners, dtype=np.float64)


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> Points:
    """Give an ellipse around (x, y), or its sector's edge between two angles (degrees, clockwise from the right)."""
    angle = np.radians(np.linspace(start, end, 40))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def arc(x: float, y: float, rx: float, ry: float, width: float, start: float, end: float) -> Points:
    """Give a curved band, such as a handle, of the given width between two angles (degrees)."""
    outer = ellipse(x, y, rx, ry, start, end)
    inner = ellipse(x, y, rx - width, ry - width, start, end)
    return np.concatenate([outer, inner[::-1]])


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> Points:
    """Give an upright rectangle, its corners rounded by a radius."""
    if radius == 0:
        return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    r = radius
    corners = ((x1 - r, y0 + r, 270), (x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180))
    return np.concatenate([ellipse(x, y, r, r, angle, angle + 90)[::6] for x, y, angle in corners])


def _mug() -> list[Part]:
    return [
        Part("trim", arc(0.70, 0.5, 0.28, 0.27, 0.09, -100, 100)),
        Part("body", box(0.08, 0.1, 0.72, 0.92, 0.07)),
        Part("dark", ellipse(0.40, 0.13, 0.31, 0.07)),
    ]


def _teapot() -> list[Part]:
    return [
        Part("trim", arc(0.22, 0.56, 0.22, 0.2, 0.08, 90, 270)),
        Part("trim", polygon((0.68, 0.7), (0.86, 0.5), (0.88, 0.3), (1.0, 0.26), (0.98, 0.52), (0.74, 0.84))),
        Part("body", ellipse(0.5, 0.6, 0.31, 0.29)),
        Part("trim", ellipse(0.5, 0.33, 0.19, 0.06)),
        Part("dark", ellipse(0.5, 0.24, 0.055, 0.055)),
    ]


def _lamp() -> list[Part]:
    return [
        Part("dark", box(0.46, 0.5, 0.54, 0.92)),
        Part("dark", ellipse(0.5, 0.93, 0.24, 0.06)),
        Part("body", polygon((0.3, 0.04), (0.7, 0.04), (0.95, 0.58), (0.05, 0.58))),
    ]


def _armchair() -> list[Part]:
    return [
        Part("dark", box(0.12, 0.85, 0.2, 1.0)),
        Part("dark", box(0.8, 0.85, 0.88, 1.0)),
        Part("body", box(0.16, 0.05, 0.84, 0.7, 0.14)),
        Part("trim", box(0.2, 0.52, 0.8, 0.7, 0.05)),
        Part("body", box(0.2, 0.66, 0.8, 0.9)),
        Part("body", box(0.02, 0.4, 0.22, 0.9, 0.09)),
        Part("body", box(0.78, 0.4, 0.98, 0.9, 0.09)),
    ]


def _t_shirt() -> list[Part]:
    half = [(0.36, 0.08), (0.2, 0.13), (0.0, 0.36), (0.14, 0.5), (0.24, 0.4), (0.24, 0.96)]
    mirrored = [(1 - x, y) for x, y in reversed(half)]
    return [
        Part("body", polygon(*half, *mirrored)),
        Part("dark", ellipse(0.5, 0.08, 0.14, 0.09, 0, 180)),
    ]


def _dress() -> list[Part]:
    half = [(0.42, 0.2), (0.4, 0.0), (0.33, 0.0), (0.32, 0.28), (0.39, 0.44), (0.1, 0.98)]
    mirrored = [(1 - x, y) for x, y in reversed(half)]
    return [
        Part("body", polygon(*half, (0.5, 1.0), *mirrored, (0.5, 0.24))),
        Part("dark", box(0.375, 0.41, 0.625, 0.47)),
    ]


def _sock() -> list[Part]:
    leg = [(0.3, 0.03), (0.66, 0.03), (0.66, 0.6), (0.64, 0.74), (0.4, 0.96), (0.16, 0.98), (0.08, 0.86)]
    return [
        Part("body", polygon(*leg, (0.12, 0.74), (0.3, 0.56))),
        Part("light", box(0.28, 0.02, 0.68, 0.13)),
        Part("light", ellipse(0.16, 0.87, 0.1, 0.11)),
    ]


def _boot() -> list[Part]:
    upper = [(0.1, 0.02), (0.54, 0.02), (0.54, 0.48), (0.84, 0.58), (0.97, 0.74), (0.97, 0.86)]
    return [
        Part("body", polygon(*upper, (0.1, 0.86))),
        Part("dark", polygon((0.08, 0.84), (0.99, 0.84), (0.99, 0.94), (0.42, 0.94), (0.36, 1.0), (0.08, 1.0))),
        Part("dark", box(0.08, 0.0, 0.56, 0.08)),
    ]


def _hat() -> list[Part]:
    return [
        Part("trim", ellipse(0.5, 0.7, 0.5, 0.13)),
        Part("body", polygon((0.2, 0.7), (0.25, 0.2), (0.38, 0.14), (0.5, 0.2), (0.62, 0.14), (0.75, 0.2), (0.8, 0.7))),
        Part("dark", polygon((0.21, 0.56), (0.79, 0.56), (0.8, 0.69), (0.2, 0.69))),
    ]


def _backpack() -> list[Part]:
    return [
        Part("dark", arc(0.5, 0.12, 0.14, 0.12, 0.05, 180, 360)),
        Part("trim", box(0.06, 0.45, 0.22, 0.85, 0.06)),
        Part("trim", box(0.78, 0.45, 0.94, 0.85, 0.06)),
        Part("body", box(0.16, 0.08, 0.84, 0.98, 0.2)),
        Part("dark", box(0.22, 0.4, 0.78, 0.45)),
        Part("trim", box(0.28, 0.6, 0.72, 0.88, 0.05)),
        Part("light", box(0.45, 0.58, 0.55, 0.68)),
    ]


def _handbag() -> list[Part]:
    return [
        Part("trim", arc(0.5, 0.42, 0.27, 0.4, 0.07, 180, 360)),
        Part("body", polygon((0.14, 0.38), (0.86, 0.38), (1.0, 0.96), (0.0, 0.96))),
        Part("dark", box(0.11, 0.38, 0.89, 0.46)),
        Part("light", ellipse(0.5, 0.52, 0.06, 0.07)),
    ]


def _umbrella() -> list[Part]:
    scallops = [(1.0, 0.5), (0.84, 0.44), (0.67, 0.5), (0.5, 0.44), (0.33, 0.5), (0.16, 0.44), (0.0, 0.5)]
    dome = [(float(x), float(y)) for x, y in ellipse(0.5, 0.5, 0.5, 0.44, 180, 360)]
    return [
        Part("dark", box(0.47, 0.0, 0.53, 0.9)),
        Part("dark", arc(0.6, 0.88, 0.13, 0.12, 0.06, 0, 180)),
        Part("body", polygon(*dome, *scallops)),
    ]


def _kite() -> list[Part]:
    tail = [(0.49, 0.7), (0.58, 0.78), (0.46, 0.88), (0.56, 1.0), (0.61, 0.98), (0.53, 0.88), (0.65, 0.78), (0.53, 0.7)]
    return [
        Part("dark", polygon(*tail)),
        Part("body", polygon((0.5, 0.0), (0.9, 0.32), (0.5, 0.76), (0.1, 0.32))),
        Part("dark", box(0.485, 0.0, 0.515, 0.76)),
        Part("dark", box(0.1, 0.305, 0.9, 0.335)),
    ]


def _teddy_bear() -> list[Part]:
    limbs = [(0.22, 0.6, 0.13, 0.09), (0.78, 0.6, 0.13, 0.09), (0.3, 0.92, 0.14, 0.09), (0.7, 0.92, 0.14, 0.09)]
    ears = [(0.28, 0.1, 0.11, 0.1), (0.72, 0.1, 0.11, 0.1)]
    return [
        *(Part("trim", ellipse(*limb)) for limb in (*limbs, *ears)),
        Part("body", ellipse(0.5, 0.7, 0.25, 0.26)),
        Part("body", ellipse(0.5, 0.28, 0.29, 0.25)),
        Part("light", ellipse(0.5, 0.37, 0.12, 0.09)),
        Part("dark", ellipse(0.5, 0.34, 0.045, 0.035)),
        Part("dark", ellipse(0.38, 0.24, 0.04, 0.045)),
        Part("dark", ellipse(0.62, 0.24, 0.04, 0.045)),
    ]


def _toy_car() -> list[Part]:
    roof = [(0.22, 0.48), (0.32, 0.2), (0.66, 0.2), (0.82, 0.48)]
    return [
        Part("body", polygon((0.0, 0.5), (0.06, 0.46), *roof, (0.97, 0.52), (1.0, 0.74), (0.0, 0.74))),
        Part("light", polygon((0.29, 0.45), (0.36, 0.26), (0.48, 0.26), (0.48, 0.45))),
        Part("light", polygon((0.53, 0.45), (0.53, 0.26), (0.63, 0.26), (0.73, 0.45))),
        *(Part("dark", ellipse(x, 0.75, 0.125, 0.125)) for x in (0.24, 0.77)),
        *(Part("light", ellipse(x, 0.75, 0.05, 0.05)) for x in (0.24, 0.77)),
    ]


def _flower_pot() -> list[Part]:
    petals = [ellipse(0.5 + 0.13 * np.cos(a), 0.2 + 0.13 * np.sin(a), 0.08, 0.08) for a in np.arange(0, 6.2, 1.257)]
    return [
        Part("dark", box(0.475, 0.25, 0.525, 0.55)),
        Part("dark", polygon((0.5, 0.5), (0.3, 0.32), (0.22, 0.38), (0.34, 0.5))),
        Part("dark", polygon((0.5, 0.5), (0.7, 0.32), (0.78, 0.38), (0.66, 0.5))),
        *(Part("light", petal) for petal in petals),
        Part("dark", ellipse(0.5, 0.2, 0.07, 0.07)),
        Part("body", polygon((0.2, 0.6), (0.8, 0.6), (0.7, 1.0), (0.3, 1.0))),
        Part("trim", box(0.15, 0.52, 0.85, 0.64)),
    ]


def _camera() -> list[Part]:
    return [
        Part("trim", polygon((0.32, 0.24), (0.38, 0.12), (0.62, 0.12), (0.68, 0.24))),
        Part("dark", box(0.1, 0.17, 0.24, 0.25)),
        Part("body", box(0.0, 0.22, 1.0, 0.86, 0.08)),
        Part("dark", ellipse(0.5, 0.55, 0.25, 0.25)),
        Part("light", ellipse(0.5, 0.55, 0.17, 0.17)),
        Part("dark", ellipse(0.5, 0.55, 0.11, 0.11)),
        Part("light", box(0.8, 0.29, 0.92, 0.38)),
    ]


def _guitar() -> list[Part]:
    return [
        Part("dark", box(0.42, 0.0, 0.58, 0.12)),
        Part("dark", box(0.45, 0.1, 0.55, 0.5)),
        Part("body", ellipse(0.5, 0.5, 0.23, 0.18)),
        Part("body", ellipse(0.5, 0.77, 0.32, 0.23)),
        Part("dark", ellipse(0.5, 0.6, 0.08, 0.08)),
        Part("dark", box(0.38, 0.83, 0.62, 0.88)),
    ]


def _ball() -> list[Part]:
    return [Part("body", ellipse(0.5, 0.5, 0.5, 0.5)), Part("light", ellipse(0.33, 0.27, 0.1, 0.07))]


def _notebook() -> list[Part]:
    rings = [box(0.1, y, 0.28, y + 0.05) for y in np.arange(0.1, 0.9, 0.13)]
    return [
        Part("light", box(0.24, 0.04, 0.9, 1.0)),
        Part("body", box(0.18, 0.0, 0.86, 0.96)),
        *(Part("dark", ring) for ring in rings),
        Part("light", box(0.4, 0.14, 0.76, 0.32)),
    ]


SHAPES: dict[str, Callable[[], Sequence[Part]]] = {
    "mug": _mug, "teapot": _teapot, "lamp": _lamp, "armchair": _armchair, "T-shirt": _t_shirt, "dress": _dress,
    "sock": _sock, "boot": _boot, "hat": _hat, "backpack": _backpack, "handbag": _handbag, "umbrella": _umbrella,
    "kite": _kite, "teddy bear": _teddy_bear, "toy car": _toy_car, "flower pot": _flower_pot, "camera": _camera,
    "guitar": _guitar, "ball": _ball, "notebook": _notebook,
}  # fmt: skip


def parts_of(object_: str) -> list[Part]:
    """Give the parts of an object from back to front, centred at 0 and scaled to a longest side of 1."""
    parts = SHAPES[object_]()
    corners = np.concatenate([part.points for part in parts])
    low, high = corners.min(axis=0), corners.max(axis=0)
    centre, extent = (low + high) / 2, float((high - low).max())
    return [Part(part.role, (part.points - centre) / extent) for part in parts]
