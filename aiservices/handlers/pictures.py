"""Decode a caller-supplied picture, or refuse it. Pillow is imported when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

from aiservices.errors import InvalidInput
from aiservices.handlers.picture_bounds import MAX_ASPECT, check_file, check_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PilImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow's names of the formats that are read; all others stay unparsed."""
_SPARE = 9
"""Pictures are made smaller early, but keep this many times the pixels that the model will see (Pillow calls a linear
factor of 3 almost indistinguishable from a resize without that step)."""


_BAND_ROWS = 64
"""Rows of a deep picture that are calculated with at once: eight bytes a pixel for all would be much."""


def decode_picture(data: bytes, *, field: str, max_pixels: int, enough_pixels: int) -> PilImage:
    """Decode the first frame upright, as RGB on white.

    Args:
        data: the file.
        field: JSON path of the input field, for messages.
        max_pixels: refuse what has more, judged by the header before anything is decoded.
        enough_pixels: the model will see at most this many, so a larger picture may come out smaller.

    Raises:
        InvalidInput: not a picture, damaged, or too large.
    """
    image = _open(data, field, max_pixels)
    try:
        shrink = sqrt(_SPARE * enough_pixels / (image.width * image.height))
        if shrink < 1:
            image.draft(image.mode, (ceil(image.width * shrink), ceil(image.height * shrink)))  # JPEG only
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError and more
        raise InvalidInput(field, f"the {image.format} picture is damaged or cut short") from error
    return pad_aspect(_reduce(_to_rgb(_upright(image)), enough_pixels))


def decode_in_child(data: bytes, *, field: str, max_pixels: int, enough_pixels: int) -> tuple[dict[str, Any], bytes]:
    """:func:`decode_picture` for ``context.run_in_child``: the size, and RGB bytes row by row."""
    image = decode_picture(data, field=field, max_pixels=max_pixels, enough_pixels=enough_pixels)
    return {"width": image.width, "height": image.height}, image.tobytes()


def from_child(size: Mapping[str, Any], pixels: bytes | bytearray, *, field: str) -> PilImage:
    """Make a picture of what :func:`decode_in_child` gave, believing none of it.

    Raises:
        InvalidInput: size and bytes do not fit.
    """
    from PIL import Image

    width, height = size.get("width"), size.get("height")
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        raise InvalidInput(field, "could not be decoded")
    if 3 * width * height != len(pixels):
        raise InvalidInput(field, "could not be decoded")
    return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)


def pad_aspect(image: PilImage, max_aspect: int = MAX_ASPECT) -> PilImage:
    """Widen a very long or very tall RGB picture with white, so that no side is over ``max_aspect`` times the other."""
    from PIL import Image

    width, height = image.size
    least = ceil(max(width, height) / max_aspect)
    if min(width, height) >= least:
        return image
    padded = Image.new("RGB", (max(width, least), max(height, least)), "white")
    padded.paste(image, ((padded.width - width) // 2, (padded.height - height) // 2))
    return padded


def _open(data: bytes, field: str, max_pixels: int) -> PilImage:
    from PIL import Image

    check_file(data, field)
    Image.init()
    built = [name for name in FORMATS if name in Image.OPEN]  # a Pillow may have been built without some
    try:
        image = Image.open(BytesIO(data), formats=built)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidInput(field, f"the picture has more than {max_pixels / 1e6:g} million pixels") from error
    except MemoryError:
        raise
    except Exception as error:  # as above; AVIF's raises RuntimeError
        raise InvalidInput(field, "not a picture in JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF format") from error
    check_size(image, field, max_pixels)
    return image


def _upright(image: PilImage) -> PilImage:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the picture
        return image


def _to_rgb(image: PilImage) -> PilImage:
    from PIL import Image

    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        return canvas.convert("RGB")
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    return image.convert("RGB")


def _to_8_bits(image: PilImage) -> PilImage:
    """Make a greyscale picture of 16 or 32 bits one of 8; ``convert`` would clip it to white."""
    import numpy as np
    from PIL import Image

    deep = np.asarray(image)
    bands = [slice(at, at + _BAND_ROWS) for at in range(0, len(deep), _BAND_ROWS)]

    def grey(band: slice) -> NDArray[np.float64]:
        return np.nan_to_num(deep[band].astype(np.float64), posinf=255.0, neginf=0.0)

    low = min(float(grey(band).min()) for band in bands)
    high = max(float(grey(band).max()) for band in bands)
    offset, scale = 0.0, 1.0
    if image.mode.startswith("I;16") or (image.mode == "I" and low >= 0 and 255 < high < 65536):
        scale = 1 / 257
    elif low < 0 or high > 255:
        offset, scale = low, 255 / (high - low)
    flat = np.empty(deep.shape, dtype=np.uint8)
    for band in bands:
        flat[band] = ((grey(band) - offset) * scale).clip(0, 255).round()
    return Image.fromarray(flat)


def _reduce(image: PilImage, enough_pixels: int) -> PilImage:
    """Average blocks of pixels: many times faster than to resize a large picture with a wide filter."""
    factor = int(sqrt(image.width * image.height / (_SPARE * enough_pixels)))
    factor = min(factor, image.width, image.height)
    return image.reduce(factor) if factor > 1 else image
