"""Turn tokens into text as they come, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from aiservices.handlers.text.generation import GenerationRequest

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(Protocol):
    """Text of a growing row of tokens."""

    def add(self, tokens: Sequence[int]) -> str:
        """Take more tokens; return the text that is certain by now."""

    def finish(self) -> str:
        """Return what is left, without half a character at its end."""


def make_detokenizer(request: GenerationRequest, tokenizer: Tokenizer) -> Detokenizer:
    """Make the one for a request: by bytes where a grammar has checked them, else by a window of tokens."""
    return WindowDetokenizer(tokenizer) if request.grammar is None else ByteDetokenizer(request.grammar.to_bytes)


class WindowDetokenizer:
    """Decode a window of recent tokens twice, without and with the new ones; the difference is their text.

    A tokenizer's decoder looks at neighbours (leading spaces, byte tokens), so tokens cannot be decoded one by one.
    Special tokens are left out.

    Args:
        tokenizer: the tokenizer of the checkpoint.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode: Callable[[list[int]], str] = tokenizer.decode
        self._window: list[int] = []
        self._known = 0

    def add(self, tokens: Sequence[int]) -> str:
        """Take more tokens; return the text that is certain by now."""
        self._window.extend(tokens)
        known, whole = self._decode(self._window[: self._known]), self._decode(self._window)
        if whole.endswith(_REPLACEMENT):  # perhaps a character whose last bytes are still to come
            return ""
        del self._window[: self._known]
        self._known = len(self._window)
        return whole[len(known) :]

    def finish(self) -> str:
        """Return what is left, without half a character at its end."""
        known, whole = self._decode(self._window[: self._known]), self._decode(self._window)
        self._window = []
        self._known = 0
        return whole[len(known) :].rstrip(_REPLACEMENT)


class ByteDetokenizer:
    """Join the bytes of tokens: exact where a grammar has checked these very bytes.

    Args:
        to_bytes: bytes of some tokens.
    """

    def __init__(self, to_bytes: Callable[[list[int]], bytes]) -> None:
        self._to_bytes = to_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, tokens: Sequence[int]) -> str:
        """Take more tokens; return the text that is certain by now."""
        return self._utf8.decode(self._to_bytes(list(tokens)))

    def finish(self) -> str:
        """Return what is left: nothing, half a character is dropped."""
        return ""
