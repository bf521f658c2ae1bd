"""A tokenizer as grammars see it, and what its tokens may do to JSON.

llguidance and numpy are imported when asked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import attrs

from aiservices.errors import ServiceError

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLTokenizer
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

_STRUCTURE = re.compile(rb'["\[\]{},]')
_SEPARATOR = re.compile(rb'(?:^|(?<=["\]}0-9el])),(?=$|["\[{0-9tfn-])')
"""A comma that may stand between two values, as far as the token says."""


@attrs.frozen(eq=False)
class JsonTokens:
    """llguidance's view of a tokenizer.

    Attributes:
        tokenizer: the view.
        small: tokens that end no value and begin none, but for single bytes: as bits, ``[vocabulary / 32]``.
        commas: a comma alone, in the same shape.
        separators: most values that one token may separate.
    """

    tokenizer: LLTokenizer
    small: NDArray[np.int32]
    commas: NDArray[np.int32]
    separators: int

    @classmethod
    def of(cls, tokenizer: LLTokenizer) -> JsonTokens:
        """Look at every token: 0.3 s for 131 072 of them.

        Raises:
            ServiceError: there is no token for some mark of JSON alone.
        """
        import numpy as np

        small = np.zeros((tokenizer.vocab_size + 31) // 32 * 32, dtype=np.uint8)
        commas = np.zeros_like(small)
        separators, single = 1, set()
        for token, text in _texts(tokenizer):
            if _STRUCTURE.search(text) is None or len(text) == 1:
                small[token] = 1
                commas[token] = text == b","
                single.add(text)
            else:
                separators = max(separators, len(_SEPARATOR.findall(text)))
        if missing := [mark for mark in '"[]{},' if mark.encode() not in single]:
            raise ServiceError(f"the checkpoint's tokenizer has no tokens for {missing[0]!r} alone")
        return cls(tokenizer, _bits(small), _bits(commas), separators)

    def count(self, text: bytes) -> int:
        """Tokens that some bytes take.

        Raises:
            ServiceError: there are none for them.
        """
        tokens = self.encode(text)
        if self.decode(tokens) != text:
            raise ServiceError(f"the checkpoint's tokenizer has no tokens for {text!r}")
        return len(tokens)

    def encode(self, text: bytes) -> list[int]:
        """Tokens of some bytes."""
        return self.tokenizer.tokenize_bytes(text)

    def decode(self, tokens: Collection[int]) -> bytes:
        """Bytes of some tokens."""
        return self.tokenizer.decode_bytes(list(tokens))


def read_tokenizer(tokenizer: Tokenizer, vocabulary: int, stop_ids: Collection[int]) -> JsonTokens:
    """Give llguidance its view of a tokenizer. Takes about a second for a large vocabulary.

    Args:
        tokenizer: the tokenizer of the checkpoint.
        vocabulary: width of the model's logits, which may be more than the tokenizer has tokens.
        stop_ids: tokens that end an answer.

    Raises:
        ServiceError: llguidance does not know this kind of tokenizer, or it lacks a mark of JSON.
    """
    from llguidance import LLTokenizer

    try:
        view = LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary, eos_token=sorted(stop_ids))
    except ValueError as error:
        raise ServiceError(f"the checkpoint's tokenizer is of a kind that grammars do not support: {error}") from error
    return JsonTokens.of(view)


def _bits(marked: NDArray[np.uint8]) -> NDArray[np.int32]:
    import numpy as np

    return np.packbits(marked, bitorder="little").view(np.int32)


def _texts(tokenizer: Any) -> Iterator[tuple[int, bytes]]:
    for token in range(tokenizer.vocab_size):
        yield token, tokenizer.decode_bytes([token])
