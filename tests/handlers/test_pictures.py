"""Pictures as callers send them: odd, huge, damaged, or none at all."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib
from typing import Any

import pytest

pytest.importorskip("PIL", reason="needs Pillow: pip install 'aiservices[qwen]'")

import numpy as np
from PIL import Image, ImageCms, features

from aiservices.errors import InvalidInput
from aiservices.handlers.pictures import FORMATS, decode_picture, pad_aspect

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encode(image: Image.Image, format: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def decode(data: bytes, *, max_pixels: int = 50_000_000, enough_pixels: int = 1_000_000) -> Image.Image:
    return decode_picture(data, field="$.image_url", max_pixels=max_pixels, enough_pixels=enough_pixels)


def centre(image: Image.Image) -> tuple[int, ...]:
    pixel = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "AVIF" or features.check("avif")])
def test_every_format_comes_out_as_rgb(format: str) -> None:
    image = decode(encode(Image.new("RGB", (40, 30), RED), format))
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert np.allclose(centre(image), RED, atol=6)


def test_what_is_transparent_shows_white() -> None:
    for mode, transparent in (("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))):
        assert centre(decode(encode(Image.new(mode, (8, 8), transparent)))) == WHITE
    assert centre(decode(encode(Image.new("RGBA", (8, 8), (255, 0, 0, 255))))) == RED
    assert centre(decode(encode(Image.new("RGBA", (8, 8), (255, 0, 0, 128))))) == (255, 127, 127)


def test_palettes_with_and_without_a_transparent_colour_are_resolved() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    assert centre(decode(encode(image))) == RED
    assert centre(decode(encode(image, transparency=1))) == WHITE
    assert centre(decode(encode(image, "GIF", transparency=1))) == WHITE
    assert centre(decode(encode(Image.new("RGB", (8, 8), RED), transparency=RED))) == WHITE


@pytest.mark.parametrize("mode", ["1", "L"])
def test_black_and_white_and_grey_become_rgb(mode: str) -> None:
    assert centre(decode(encode(Image.new(mode, (8, 8), 255)))) == WHITE


@pytest.mark.parametrize(
    ("pixels", "format", "grey"),
    [
        (np.full((8, 8), 257 * 100, np.uint16), "PNG", 100),
        (np.full((8, 8), 257 * 100, np.uint16), "TIFF", 100),
        (np.full((8, 8), 257 * 100, np.int32), "TIFF", 100),
        (np.full((8, 8), 200, np.int32), "TIFF", 200),
        (np.full((8, 8), 60.0, np.float32), "TIFF", 60),
        (np.array([[-1.0, 1.0]] * 4, np.float32), "TIFF", 255),
        (np.full((8, 8), np.nan, np.float32), "TIFF", 0),
    ],
)
def test_deep_greys_keep_their_brightness(pixels: Any, format: str, grey: int) -> None:
    assert centre(decode(encode(Image.fromarray(pixels), format))) == (grey,) * 3


def test_cmyk_becomes_rgb() -> None:
    image = decode(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.allclose(centre(image), RED, atol=6)


def test_lab_becomes_rgb() -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.new("RGB", (8, 8), RED), to_lab)
    assert lab is not None
    assert decode(encode(lab, "TIFF")).mode == "RGB"


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, WHITE, (0, 0, 255))]
    for format in ("GIF", "PNG", "WEBP"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
        assert np.allclose(centre(decode(data)), RED, atol=6)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_picture_is_turned_upright(format: str) -> None:
    image = Image.new("RGB", (64, 32), WHITE)
    image.paste(RED, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    upright = decode(encode(image, format, exif=exif))
    assert upright.size == (32, 64)
    assert np.allclose(centre(upright.crop((0, 0, 32, 24))), RED, atol=8)
    assert np.allclose(centre(upright.crop((0, 40, 32, 64))), WHITE, atol=8)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of every damaged entry
def test_a_damaged_exif_block_is_no_reason_to_refuse() -> None:
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff" + b"\x01\x12\x00\x03" * 3
    assert decode(encode(Image.new("RGB", (8, 8), RED), "JPEG", exif=exif)).size == (8, 8)


def test_the_smallest_picture_is_one() -> None:
    assert decode(encode(Image.new("RGB", (1, 1), RED))).size == (1, 1)


@pytest.mark.parametrize(
    ("size", "padded"), [((1, 5000), (25, 5000)), ((5000, 1), (5000, 25)), ((400, 2), (400, 2)), ((401, 2), (401, 3))]
)
def test_very_long_pictures_are_widened_with_white(size: tuple[int, int], padded: tuple[int, int]) -> None:
    image = pad_aspect(Image.new("RGB", size, RED))
    assert image.size == padded
    assert RED in {image.getpixel((x, y)) for x in range(min(26, image.width)) for y in range(min(26, image.height))}


def test_large_pictures_come_out_smaller_but_large_enough() -> None:
    for format in ("JPEG", "PNG"):
        image = decode(encode(Image.new("RGB", (3000, 2000), RED), format), enough_pixels=10_000)
        assert 40_000 <= image.width * image.height < 400_000
        assert image.width / image.height == pytest.approx(1.5, rel=0.02)
        assert np.allclose(centre(image), RED, atol=6)


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (300, 200)))
    Image.init()
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InvalidInput, match=r"300 x 200 pixels, more than 0\.05 million"):
        decode(data, max_pixels=50_000)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is huge."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match="million"):
        decode(bomb(*size))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"GIF89a", b"BM", b"\xff\xd8"],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"\$\.image_url: not a picture in JPEG, PNG"):
        decode(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_cut_short_is_refused(format: str) -> None:
    noise = Image.effect_noise((120, 90), 80).convert("RGB")
    data = encode(noise, format)
    with pytest.raises(InvalidInput, match=r"\$\.image_url: "):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata, each format in its own way
def test_damaged_bytes_give_a_picture_or_a_refusal(format: str) -> None:
    data = encode(Image.effect_noise((40, 30), 80).convert("RGB"), format)
    for seed in range(60):
        dice = random.Random(seed)
        broken = bytearray(data)
        for _ in range(dice.randrange(1, 6)):
            broken[dice.randrange(len(broken))] = dice.randrange(256)
        with contextlib.suppress(InvalidInput):
            assert decode(bytes(broken), max_pixels=1_000_000).mode == "RGB"


def test_running_out_of_memory_is_not_the_callers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> None:
        raise MemoryError

    data = encode(Image.new("RGB", (8, 8)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(MemoryError):
        decode(data)
