"""What bytes are, told by how they begin, and what a field accepts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from aiservices.fetch.refusal import Failure, FetchResult
from aiservices.handler import MediaKind

SNIFF_BYTES = 64
"""How many bytes from the first are enough to tell."""

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"II+\0", "image/tiff"),
    (b"MM\0+", "image/tiff"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"\x1aE\xdf\xa3", "audio/webm"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
    (b"<!doctype html", "text/html"),
    (b"<html", "text/html"),
    (b"<svg", "image/svg+xml"),
    (b"<?xml", "text/xml"),
)
_FORMS = {
    (b"RIFF", b"WEBP"): "image/webp",
    (b"RIFF", b"WAVE"): "audio/wav",
    (b"RF64", b"WAVE"): "audio/wav",
    (b"RIFF", b"AVI "): "video/avi",
    (b"FORM", b"AIFF"): "audio/aiff",
    (b"FORM", b"AIFC"): "audio/aiff",
}
# ISO base media files tell by their major brand; what only says "ISO file" may well be sound: its decoder will tell.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "image/heic"),
    **dict.fromkeys(
        (b"M4A ", b"M4B ", b"mp41", b"mp42", b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"dash"), "audio/mp4"
    ),
}
_BMP_HEADER_BYTES = frozenset({12, 40, 52, 56, 64, 108, 124})

_ACCEPTED: Mapping[MediaKind, frozenset[str]] = {
    "image": frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp", "image/tiff", "image/avif"}),
    "audio": frozenset(
        {"audio/wav", "audio/flac", "audio/mpeg", "audio/ogg", "audio/mp4", "audio/aac", "audio/webm", "audio/aiff"}
    ),
}
_WANTED: Mapping[MediaKind, str] = {
    "image": "a picture (PNG, JPEG, GIF, WebP, BMP, TIFF, AVIF)",
    "audio": "a sound file (WAV, FLAC, MP3, Ogg, M4A, AAC, WebM, AIFF)",
}


def sniff(data: bytes) -> str:
    """Return the media type that the first bytes tell, ``text/plain`` for what reads as text, else an empty string.

    A table of our own, because it is short and because of what there is: the puremagic that runs on all our Pythons is
    its frozen 1.x and ranks guesses by confidence, which is not a yes or no; filetype had its last release in 2022.
    """
    head = data[:SNIFF_BYTES]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for signature, media_type in _SIGNATURES:
        if head.startswith(signature) or (signature[:1] == b"<" and text.startswith(signature)):
            return media_type
    if found := _FORMS.get((head[:4], head[8:12])):
        return found
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_BYTES:
        return "image/bmp"
    return _sniff_frames(head) or ("text/plain" if head and not re.search(rb"[^\t\r\n\x20-\x7e]", head) else "")


def _sniff_frames(head: bytes) -> str:
    """Find sound that begins with a bare frame: MPEG layer III (ISO 11172-3, 2.4.1.3) or AAC in ADTS."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return ""
    if head[1] & 0xF6 == 0xF0:
        return "audio/aac"
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    return "audio/mpeg" if layer == 1 and version != 1 and 0 < bitrate < 15 and rate != 3 else ""


def check_kind(data: bytes, kind: MediaKind) -> None:
    """Make sure that bytes, or at least the first :data:`SNIFF_BYTES` of them, begin as a file of the kind does.

    Raises:
        Failure: naming what was found and what is accepted.
    """
    if not data:
        raise Failure("is empty", FetchResult.MEDIA_TYPE)
    found = sniff(data)
    if found not in _ACCEPTED[kind]:
        raise Failure(f"is {found or 'of an unknown type'}, not {_WANTED[kind]}", FetchResult.MEDIA_TYPE)
