"""What is refused of a picture by its headers, before anything is decoded: small files that take minutes or GiB."""

from __future__ import annotations

import re
from math import ceil
from typing import TYPE_CHECKING

from aiservices.errors import InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

MAX_ASPECT = 200
"""Longer by shorter side that Qwen's image processor takes (transformers, ``smart_resize``)."""
MAX_SCANS = 100
"""Scans of a progressive JPEG; encoders write about ten, and each goes over the whole picture."""
MAX_SEGMENTS = 2_000
"""Segments of a JPEG; an ICC profile, EXIF and XMP of 8 MiB take some 130."""
MAX_JUNK_BYTES = 64 * 1024
"""Filler between a JPEG's segments, which Pillow reads byte by byte."""
MAX_METADATA_BYTES = 8 * 1024 * 1024
"""Each of ICC profile, EXIF and XMP; depth maps in a telephone's XMP take a few MiB."""
MAX_TILE_BYTES = 64 * 1024 * 1024
"""Of a TIFF's tile, which is decoded whole however small the picture is: 4 096 x 4 096 pixels of RGBA."""

_START_OF_SCAN = 0xDA
_END_OF_IMAGE = 0xD9
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_TILE_WIDTH, _TILE_LENGTH, _BITS, _SAMPLES = 322, 323, 258, 277  # TIFF 6.0, sections 8 and 15


def check_file(data: bytes, field: str) -> None:
    """Refuse a JPEG of too many scans, segments, or too much filler (ITU-T T.81, annex B). Other formats pass.

    Raises:
        InvalidInput: naming ``field``.
    """
    if data[:2] != b"\xff\xd8":
        return
    scans = segments = junk = 0
    at = 2
    while found := (_AFTER_SCAN if scans else _MARKER).search(data, at):
        segments += 1
        marker = data[found.end() - 1]
        if not scans:
            junk += found.end() - 2 - at
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        if scans > MAX_SCANS:
            raise InvalidInput(field, f"the JPEG picture has more than {MAX_SCANS} scans")
        if segments > MAX_SEGMENTS:
            raise InvalidInput(field, f"the JPEG picture has more than {MAX_SEGMENTS} segments")
        at = found.end() if marker == 0x01 or 0xD0 <= marker <= 0xD8 else _behind_segment(data, found.end())
    else:
        junk += 0 if scans else len(data) - at
    if junk > MAX_JUNK_BYTES:
        raise InvalidInput(field, "the JPEG picture holds too much filler between its segments")


def _behind_segment(data: bytes, at: int) -> int:
    return at + max(2, int.from_bytes(data[at : at + 2], "big"))


def check_size(image: PilImage, field: str, max_pixels: int) -> None:
    """Refuse too many pixels, also once the picture is padded to :data:`MAX_ASPECT`, metadata and tiles.

    Raises:
        InvalidInput: naming ``field``.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise InvalidInput(field, f"the picture has {width} x {height} pixels, more than {max_pixels / 1e6:g} million")
    if not width or not height:
        raise InvalidInput(field, "the picture is empty")
    longest = max(width, height)
    if longest * max(min(width, height), ceil(longest / MAX_ASPECT)) > max_pixels:
        raise InvalidInput(field, f"the picture is too long and narrow: {width} x {height} pixels")
    for kind, name in (("icc_profile", "ICC profile"), ("exif", "EXIF"), ("xmp", "XMP")):
        if len(image.info.get(kind) or b"") > MAX_METADATA_BYTES:
            raise InvalidInput(field, f"the picture's {name} has more than {MAX_METADATA_BYTES >> 20} MiB")
    _check_tile(image, field)


def _check_tile(image: PilImage, field: str) -> None:
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None or _TILE_WIDTH not in tags:
        return
    bits = tags.get(_BITS, (8,))
    depth = max(bits) if isinstance(bits, tuple) else bits
    tile_bytes = tags[_TILE_WIDTH] * tags.get(_TILE_LENGTH, 1) * tags.get(_SAMPLES, 1) * ceil(depth / 8)
    if tile_bytes > MAX_TILE_BYTES:
        raise InvalidInput(field, f"the TIFF picture's tiles have more than {MAX_TILE_BYTES >> 20} MiB")
