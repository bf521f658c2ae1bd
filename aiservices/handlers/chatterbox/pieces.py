"""Cut a text into pieces that are spoken one by one, and judge by its length whether a piece was spoken."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import attrs

from aiservices.handlers.chatterbox.variants import TextReader
from aiservices.handlers.speech_text import SPEECH_BREAKS, plain_text, split_text

MAX_PIECE_CHARS = 300
"""Longer text makes the model skip and repeat words."""

MAX_PIECE_TOKENS = 400
"""Scripts whose characters take many tokens are cut finer; more than 2048 are an IndexError in the library, or on a GPU
the end of its context."""

FIRST_PIECE_CHARS = 60
"""A streamed text begins with about so much, some four seconds of speech, so that it is soon heard. Each of the next
pieces may be twice as long as the one before: where speech is made twice as fast as it is heard, no listener waits.
"""

_CLAUSE_END = re.compile("|".join(SPEECH_BREAKS[:2]))
_FIRST_CLAUSE_CHARS = (20, 100)  # a shorter one is over before the next is made, a longer one is cut between words
_SENTENCE_END = re.compile(r"[.!?\u2026\u061f\u06d4\u0964\u3002\uff01\uff1f\uff61][\"')\u2019\u201d]?$")
_TOKENS_PER_CHAR = (0.4, 12.0)  # usual is 1.7, at some 15 characters and 25 tokens a second; numbers take up to 8
_SURELY_PLAUSIBLE = 100  # tokens, 4 s: no text is too short for that


@attrs.frozen
class Piece:
    """A part of the text that is spoken in one go.

    Args:
        text: what it says.
        ids: the text's tokens.
        pause_s: silence after it.
    """

    text: str
    ids: Sequence[int]
    pause_s: float

    @property
    def bounds(self) -> tuple[float, float]:
        """Fewest and most speech tokens that can be this text."""
        low, high = (rate * len(self.text) for rate in _TOKENS_PER_CHAR)
        return low, max(high, _SURELY_PLAUSIBLE)

    def misfit(self, tokens: int, *, ended: bool) -> float:
        """Tell how far a number of speech tokens is from what this text takes: 0 is well, 1 and more is not."""
        low, high = self.bounds
        if tokens == 0:
            return float("inf")
        beyond = max(0.0, low - tokens, tokens - high)
        return beyond + (0 if ended else 1)


def plan_pieces(text: str, reader: TextReader, language: str, pause_s: float, *, streamed: bool = False) -> list[Piece]:
    """Normalise a text, cut it, and read its tokens. CPU-heavy for long text.

    Args:
        text: as it was sent.
        reader: of the checkpoint.
        language: of the text.
        pause_s: between two sentences; twice that between paragraphs, a third within a sentence.
        streamed: whether the first pieces are to be short, see :data:`FIRST_PIECE_CHARS`.
    """
    pieces: list[Piece] = []
    for paragraph in re.split(r"\n\s*\n", plain_text(reader.without_marks(text))):
        parts = [
            (part, ids)
            for part in _parts(paragraph, growing=streamed and not pieces)
            for part, ids in _read(part, reader, language)
        ]
        for part, ids in parts:
            pieces.append(Piece(part, ids, pause_s if _SENTENCE_END.search(part) else pause_s / 3))
        if parts:
            pieces[-1] = attrs.evolve(pieces[-1], pause_s=2 * pause_s)
    if pieces:
        pieces[-1] = attrs.evolve(pieces[-1], pause_s=0.0)
    return pieces


def seed_of(seed: int, piece: int, attempt: int) -> int:
    """Give each piece and attempt a seed of its own; the first of both has the job's, which is the library's sound."""
    if piece == attempt == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{piece}/{attempt}".encode()).digest()[:4])


def _parts(paragraph: str, *, growing: bool) -> list[str]:
    """Cut a paragraph, if it is the first of a stream into pieces that grow."""
    rest, parts = " ".join(paragraph.split()), list[str]()
    if growing and len(rest) > FIRST_PIECE_CHARS:
        end = _first_end(rest)
        parts, rest = [rest[:end].strip()], rest[end:]
        limit = 2 * FIRST_PIECE_CHARS
        while limit < MAX_PIECE_CHARS and len(rest) > limit:
            parts.append(split_text(rest, limit)[0])
            rest = rest[rest.index(parts[-1]) + len(parts[-1]) :]
            limit *= 2
    return parts + split_text(rest, MAX_PIECE_CHARS)


def _first_end(text: str) -> int:
    """Return where the first piece of a stream ends: with a clause, or else between words."""
    least, most = _FIRST_CLAUSE_CHARS
    for found in _CLAUSE_END.finditer(text, least):
        if found.start() <= most and len(text) - found.end() >= least:
            return found.end()
    return len(text) if len(text) <= most else len(split_text(text, FIRST_PIECE_CHARS, SPEECH_BREAKS[2:])[0])


def _read(part: str, reader: TextReader, language: str) -> list[tuple[str, Sequence[int]]]:
    """Read a part, or its halves if it has too many tokens; leave out what has no letter and no digit."""
    if not any(map(str.isalnum, part)):
        return []
    ids = reader.read(part, language)
    if len(ids) <= MAX_PIECE_TOKENS or len(part) < 2:
        return [(part, ids[:MAX_PIECE_TOKENS])]
    halves = split_text(part, max(1, len(part) // 2))
    return [read for half in halves for read in _read(half, reader, language)]
