"""Cut text where speech may pause, and take out what cannot be said."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

SPEECH_BREAKS = (
    r"(?<=[.!?\u2026\u061f\u06d4\u0964])\s+|(?<=[.!?\u2026][\"')\u2019\u201d])\s+|(?<=[\u3002\uff01\uff1f\uff61])\s*",
    r"(?<=[,;:\u2013\u2014\u060c\u061b])\s+|(?<=[\u3001\uff0c\uff1b\uff1a])\s*",
    r"\s+",
)
"""Where speech may pause, best first: after a sentence (and the quote around it), after a clause, between words.

Chinese and Japanese marks stand without a space after them; the Arabic, Urdu and Hindi ones have one.
"""

_JOINERS = "\u200c\u200d"  # they shape letters in Persian and the scripts of India


def plain_text(text: str) -> str:
    """Compose letters (Unicode NFC) and leave out control characters, pictures and halves of characters."""
    return unicodedata.normalize("NFC", "".join(_plain(character) for character in text))


def split_text(text: str, max_chars: int, breaks: Sequence[str] = SPEECH_BREAKS) -> list[str]:
    """Split at ends of sentences, where those do not do at clauses, then between words, then anywhere.

    Neighbours stay together as long as they fit into ``max_chars``; white space is made single.
    """
    pieces = _split(" ".join(text.split()), max_chars, breaks)
    return [piece for piece in map(str.strip, pieces) if piece]


def _split(text: str, max_chars: int, breaks: Sequence[str]) -> list[str]:
    """Split into pieces that together are the text, each within ``max_chars`` without the white space around it."""
    if len(text.strip()) <= max_chars:
        return [text]
    if not breaks:
        return [text[start : start + max_chars] for start in range(0, len(text), max_chars)]
    ends = [match.end() for match in re.finditer(breaks[0], text)]
    pieces: list[str] = []
    for begin, end in zip([0, *ends], [*ends, len(text)], strict=True):
        for piece in _split(text[begin:end], max_chars, breaks[1:]):
            if pieces and len((pieces[-1] + piece).strip()) <= max_chars:
                pieces[-1] += piece
            else:
                pieces.append(piece)
    return pieces


def _plain(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Cc", "Cs", "Co", "Zl", "Zp"):
        return "\n" if character in "\n\u2028\u2029" else " "
    hidden = category == "Cf" and character not in _JOINERS
    pictured = category in ("So", "Sk") or 0xFE00 <= ord(character) <= 0xFE0F
    return " " if pictured else "" if hidden else character
