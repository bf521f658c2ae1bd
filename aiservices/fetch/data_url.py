"""``data:`` URLs, decoded strictly and within their bounds."""

from __future__ import annotations

import binascii
import io
import re
from urllib.parse import unquote_to_bytes

from aiservices.fetch.refusal import Failure, FetchResult, too_large

_DATA_CHARS = (
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:/?[]@!$&'()*+,;=%"  # RFC 3986, no "#"
)
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_MAX_DATA_HEAD_CHARS = 256
_SLICE_BYTES = 64 * 1024  # a multiple of 4; small, because each piece is worked on with the interpreter lock held


def decode_data_url(url: str, limit_bytes: int) -> bytes:
    """Decode a ``data:`` URL (RFC 2397) strictly: standard base64 with its padding (RFC 4648), or percent form.

    The size is bounded before anything is decoded. The media type is not looked at: the bytes tell.

    Raises:
        Failure: not valid, or larger than ``limit_bytes``.
    """
    comma = url.find(",", 0, _MAX_DATA_HEAD_CHARS)
    if comma < 0:
        raise Failure("is a data: URL without a comma near its beginning", FetchResult.DATA_URL)
    base64 = url[:comma].lower().endswith(";base64")
    encoded_limit = (limit_bytes + 2) // 3 * 4 if base64 else limit_bytes
    if len(url) - comma - 1 > encoded_limit * 3:  # every character may be percent-encoded
        raise too_large(limit_bytes)
    payload = _percent_decoded(url, comma + 1)
    if len(payload) > encoded_limit:
        raise too_large(limit_bytes)
    data = _base64_decoded(payload) if base64 else payload
    if len(data) > limit_bytes:
        raise too_large(limit_bytes)
    return data


def _percent_decoded(url: str, begin: int) -> bytes:
    decoded = io.BytesIO()
    while begin < len(url):
        end = begin + _SLICE_BYTES
        cut = url.rfind("%", end - 2, end)  # no piece may end inside an escape
        end = end if cut < 0 else cut
        decoded.write(_percent_decoded_piece(url[begin:end]))
        begin = end
    return decoded.getvalue()


def _percent_decoded_piece(text: str) -> bytes:
    piece = text.encode("ascii", "backslashreplace")  # and a backslash is refused
    if piece.translate(None, _DATA_CHARS) or _BROKEN_ESCAPE.search(piece):
        raise Failure("is a data: URL with characters that a URL may not hold", FetchResult.DATA_URL)
    return unquote_to_bytes(piece) if b"%" in piece else piece


def _base64_decoded(payload: bytes) -> bytes:
    padding = payload.find(b"=")
    if len(payload) % 4 or 0 <= padding < len(payload) - 2:
        raise Failure("is a data: URL that is not valid base64", FetchResult.DATA_URL)
    decoded = io.BytesIO()
    for begin in range(0, len(payload), _SLICE_BYTES):
        try:
            decoded.write(binascii.a2b_base64(payload[begin : begin + _SLICE_BYTES], strict_mode=True))
        except binascii.Error:
            raise Failure("is a data: URL that is not valid base64", FetchResult.DATA_URL) from None
    return decoded.getvalue()
