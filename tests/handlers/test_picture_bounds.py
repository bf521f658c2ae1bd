"""Small files that would take gigabytes or minutes are refused by their headers."""

from __future__ import annotations

import io
import random
import struct
import time
import zlib
from typing import Any

import pytest

pytest.importorskip("PIL", reason="needs Pillow: pip install 'aiservices[qwen]'")

import numpy as np
from PIL import Image, TiffImagePlugin

from aiservices.errors import InvalidInput
from aiservices.handlers.picture_bounds import MAX_SCANS, check_file
from aiservices.handlers.pictures import decode_in_child, decode_picture, from_child


def encode(image: Image.Image, format: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    return decode_picture(data, field="$.image_url", max_pixels=50_000_000, enough_pixels=1_000_000)


def png(width: int, height: int) -> bytes:
    """One colour, whole and valid."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(height * (width + 1)))) + chunk(b"IEND", b"")
    )


JPEG = encode(Image.effect_noise((160, 120), 80), "JPEG")
PROGRESSIVE = encode(Image.effect_noise((160, 120), 80), "JPEG", progressive=True)


def scan_bomb(scans: int) -> bytes:
    """The last scan of a progressive JPEG, many times."""
    last = PROGRESSIVE.rindex(b"\xff\xda")
    return PROGRESSIVE[:last] + PROGRESSIVE[last:-2] * scans + b"\xff\xd9"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(1, 300_000), "too long and narrow: 1 x 300000 pixels"),
        (png(300_000, 1), "too long and narrow: 300000 x 1 pixels"),
        (encode(Image.new("L", (1, 300_000)), "BMP"), "too long and narrow"),
        (png(1, 50_000_000), "too long and narrow"),
        (scan_bomb(18_000), f"more than {MAX_SCANS} scans"),
        (JPEG[:2] + b"\xff\xe5\x00\x02" * 6_000_000 + JPEG[2:], "more than 2000 segments"),
        (JPEG[:2] + b"\xff" * 24_000_000 + JPEG[2:], "too much filler"),
        (JPEG[:2] + b"\x00" * 24_000_000 + JPEG[2:], "too much filler"),
        (b"\xff\xd8" + b"\xff" * 24_000_000, "too much filler"),
    ],
    ids=["tall", "wide", "tall-bmp", "tallest", "scans", "segments", "filler", "junk", "endless-filler"],
)
def test_bombs_are_refused_at_once(data: bytes, reason: str) -> None:
    begun = time.process_time()
    with pytest.raises(InvalidInput, match=rf"\$\.image_url: .*{reason}"):
        decode(data)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("side", [16_384, 65_536])
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "raw"])
def test_huge_tiles_of_small_tiffs_are_refused(side: int, compression: str) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    small = encode(Image.new("RGB", (64, 64)), "TIFF", compression=compression, tiffinfo=tags)
    with Image.open(io.BytesIO(small)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        entries = dict(image.tag_v2)
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in entries.items():
        if tag not in (273, 278, 279):  # strips
            directory[tag] = value
    directory[322], directory[323] = side, side
    directory[324], directory[325] = 8, 1000
    buffer = io.BytesIO(b"II*\x00\x08\x00\x00\x00")
    buffer.seek(8)
    directory.save(buffer)
    with pytest.raises(InvalidInput, match=r"tiles have more than 64 MiB"):
        decode(buffer.getvalue())


def test_ordinary_jpegs_pass() -> None:
    for data in (
        JPEG,
        PROGRESSIVE,
        scan_bomb(50),
        encode(Image.new("RGB", (64, 64)), "JPEG", icc_profile=bytes(900_000)),
    ):
        check_file(data, "$.image_url")
    assert decode(JPEG).size == (160, 120)


def test_metadata_is_bounded() -> None:
    with pytest.raises(InvalidInput, match=r"ICC profile has more than 8 MiB"):
        decode(encode(Image.new("RGB", (8, 8)), "TIFF", icc_profile=bytes(9 << 20)))


def test_any_bytes_behind_a_jpegs_start_end_the_check() -> None:
    for seed in range(200):
        dice = random.Random(seed)
        data = b"\xff\xd8" + bytes(dice.choice((0xFF, 0xDA, 0xD9, 0, 2, 7)) for _ in range(dice.randrange(60)))
        check_file(data, "$.image_url")


@pytest.mark.parametrize(
    "data", [b"\x00\x00\x00\x20ftypavif" + bytes(400), b"\x00\x00\x00\x20ftypavifavifmif1miaf" * 9]
)
def test_a_broken_avif_is_no_internal_error(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"\$\.image_url: "):
        decode(data)


def test_deep_pictures_take_no_eight_bytes_a_pixel() -> None:
    ramp = np.linspace(-5, 5, 300 * 200, dtype=np.float32).reshape(300, 200)
    image = decode(encode(Image.fromarray(ramp), "TIFF"))
    grey = np.asarray(image)[:, :, 0].ravel()
    assert (grey[0], grey[-1]) == (0, 255)
    assert (np.diff(grey.astype(int)) >= 0).all()


def test_what_a_child_gives_is_checked() -> None:
    size, pixels = decode_in_child(JPEG, field="$.i", max_pixels=50_000_000, enough_pixels=1_000_000)
    assert from_child(size, pixels, field="$.i").tobytes() == decode(JPEG).tobytes()
    for odd in (
        {},
        {"width": 160},
        {"width": "160", "height": 120},
        {"width": -160, "height": -120},
        {**size, "width": 161},
    ):
        with pytest.raises(InvalidInput, match=r"\$\.i: could not be decoded"):
            from_child(odd, pixels, field="$.i")
