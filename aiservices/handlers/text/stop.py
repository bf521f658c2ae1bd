"""End a text before the first of some stop texts, while it is still being written."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """A text on its way through: what may become a stop text is held back until it is none.

    Args:
        texts: each at least one character; the one that is whole first ends the text.

    Attributes:
        found: whether one of them was in it; nothing comes through after that.
    """

    found: bool

    def __init__(self, texts: Sequence[str]) -> None:
        self.found = False
        self._texts = tuple(texts)
        self._held = ""

    def add(self, text: str) -> str:
        """Take more text; return what is certain to stand before any stop text."""
        if not self._texts:
            return text
        if self.found:
            return ""
        self._held += text
        places = [place for place in map(self._held.find, self._texts) if place >= 0]
        self.found = bool(places)
        certain = min(places) if places else len(self._held) - self._begun()
        text, self._held = self._held[:certain], "" if places else self._held[certain:]
        return text

    def finish(self) -> str:
        """Return what was held back: nothing follows that could make it a stop text."""
        text, self._held = self._held, ""
        return text

    def _begun(self) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        longest = min(len(self._held), max(map(len, self._texts)) - 1)
        return next(
            (
                length
                for length in range(longest, 0, -1)
                if any(text.startswith(self._held[-length:]) for text in self._texts)
            ),
            0,
        )
