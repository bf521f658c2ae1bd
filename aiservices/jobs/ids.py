"""Ids of jobs: random UUIDs (version 4), made many at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator

_IDS_A_CALL = 256
"""Each call of the system for random bytes costs as much as making six ids of what it gave."""

_VARIANT = {ord(digit): "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
"""The two highest bits of the digit that tells the variant are 10: https://www.rfc-editor.org/rfc/rfc9562#section-4.1."""


def _make() -> Iterator[str]:
    while True:
        digits = os.urandom(16 * _IDS_A_CALL).hex()
        for at in range(0, len(digits), 32):
            text = digits[at : at + 32]
            variant = text[16].translate(_VARIANT)
            yield f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"


_ids = _make()


def new_id() -> str:
    """Return an id that nobody can guess. For the event loop's thread."""
    return next(_ids)
