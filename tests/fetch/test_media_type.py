"""What the first bytes tell."""

from __future__ import annotations

import pytest

from aiservices.fetch.media_type import sniff
from tests.fetch.helpers import (
    PNG,
    WAV,
)


def ftyp(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + bytes(12)


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"BM" + bytes(12) + b"\x28\0\0\0", "image/bmp"),
        (b"BM" + bytes(12) + b"\x29\0\0\0", ""),
        (b"II*\0", "image/tiff"),
        (b"MM\0*", "image/tiff"),
        (ftyp(b"avif"), "image/avif"),
        (ftyp(b"heic"), "image/heic"),
        (ftyp(b"mif1"), "image/heic"),
        (ftyp(b"M4A "), "audio/mp4"),
        (ftyp(b"isom"), "audio/mp4"),
        (ftyp(b"qt  "), "video/mp4"),
        (WAV, "audio/wav"),
        (b"RF64\xff\xff\xff\xffWAVE", "audio/wav"),
        (b"RIFF\0\0\0\0AVI ", "video/avi"),
        (b"RIFF\0\0\0\0", ""),
        (b"FORM\0\0\0\0AIFF", "audio/aiff"),
        (b"fLaC\0\0\0\x22", "audio/flac"),
        (b"OggS\0\x02", "audio/ogg"),
        (b"ID3\x04\0", "audio/mpeg"),
        (b"\xff\xfb\x90\x00", "audio/mpeg"),
        (b"\xff\xf3\x40\xc4", "audio/mpeg"),
        (b"\xff\xfb\xf0\x00", ""),
        (b"\xff\xfb\x9c\x00", ""),
        (b"\xff\xeb\x90\x00", ""),
        (b"\xff\xf1\x50\x80", "audio/aac"),
        (b"\x1aE\xdf\xa3", "audio/webm"),
        ("\ufeff<html>".encode("utf-16-le"), ""),
        (b"%PDF-1.7", "application/pdf"),
        (b"PK\x03\x04", "application/zip"),
        (b"plain\r\n", "text/plain"),
        (b"\xff", ""),
        (b"", ""),
    ],
)
def test_the_first_bytes_tell_the_type(data: bytes, media_type: str) -> None:
    assert sniff(data) == media_type
