"""Hold rows to a JSON schema while they are generated, with llguidance; each row by itself, beside free rows.

llguidance and numpy are imported when asked for.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from aiservices.errors import JobFailed, ServiceError
from aiservices.handlers.text.json_budget import JsonPlan, JsonReader, read_fields

if TYPE_CHECKING:
    import torch
    from llguidance import LLExecutor, LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions
    from tokenizers import Tokenizer

_PARALLEL_FROM = 16_384
"""Tokens from which masks are worth several threads; below it, waking them takes longer than the masks."""
_COMPACT: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ",",
    "key_separator": ":",
    "json_allowed_escapes": '"\\',
}
"""Compact separators; of the escapes only quote and backslash, because the others make control characters."""


def read_tokenizer(tokenizer: Tokenizer, vocabulary: int, stop_ids: Collection[int]) -> LLTokenizer:
    """Give llguidance its view of a tokenizer. Takes about a second for a large vocabulary.

    Args:
        tokenizer: the tokenizer of the checkpoint.
        vocabulary: width of the model's logits, which may be more than the tokenizer has tokens.
        stop_ids: tokens that end an answer.

    Raises:
        ServiceError: llguidance does not know this kind of tokenizer.
    """
    from llguidance import LLTokenizer

    try:
        return LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary, eos_token=sorted(stop_ids))
    except ValueError as error:
        raise ServiceError(f"the checkpoint's tokenizer is of a kind that grammars do not support: {error}") from error


@attrs.frozen(eq=False)
class Grammar:
    """A compiled schema of a flat object; shared by any number of rows.

    Attributes:
        schema: what it was compiled from.
        tokenizer: whose tokens are chosen from.
        matcher: at the beginning of an object; copied for each row.
        plan: what the object costs in tokens from any place in it.
    """

    schema: Mapping[str, Any]
    tokenizer: LLTokenizer
    matcher: LLMatcher
    plan: JsonPlan

    @property
    def least_tokens(self) -> int:
        """The smallest budget that gives every string a few tokens; with it, the answer is always complete."""
        return self.plan.least_tokens

    @classmethod
    def compile(cls, schema: Mapping[str, Any], tokenizer: LLTokenizer) -> Grammar:
        """Compile a schema; takes milliseconds.

        Args:
            schema: a flat JSON schema, as :func:`~aiservices.handlers.text.json_budget.read_fields` takes it.
            tokenizer: whose tokens are to be chosen from.

        Raises:
            ServiceError: the schema does not compile, or the tokenizer has no tokens for some of its bytes.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_COMPACT))
        if matcher.is_error():
            raise ServiceError(f"the grammar does not compile: {matcher.get_error()}")

        def count(text: bytes) -> int:
            tokens = tokenizer.tokenize_bytes(text)
            if tokenizer.decode_bytes(tokens) != text:
                raise ServiceError(f"the checkpoint's tokenizer has no tokens for {text!r}")
            return len(tokens)

        return cls(schema, tokenizer, matcher, JsonPlan(read_fields(schema), count))

    def to_bytes(self, tokens: Sequence[int]) -> bytes:
        """Bytes of some tokens."""
        return self.tokenizer.decode_bytes(list(tokens))

    def start(self) -> GrammarRun:
        """Begin a row."""
        return GrammarRun(self)


class GrammarRun:
    """One row's way through a grammar.

    Args:
        grammar: the grammar; stays as it is.
    """

    forced: deque[int]
    """Tokens that come next without a choice, because the budget runs out."""

    def __init__(self, grammar: Grammar) -> None:
        self.forced = deque()
        self.matcher = grammar.matcher.deep_copy()
        self._tokenizer = grammar.tokenizer
        self._check_below = grammar.least_tokens
        self._reader = JsonReader(grammar.plan)
        self._unread: list[int] = []

    @property
    def complete(self) -> bool:
        """Whether the object is closed."""
        return self.matcher.is_stopped()

    def check_budget(self, remaining_tokens: int) -> None:
        """Force the next tokens if the budget requires it. Cheap as long as there is plenty.

        Args:
            remaining_tokens: how many tokens may still come.
        """
        if self.forced or remaining_tokens > self._check_below:
            return
        self._reader.feed(self.to_bytes(self._unread))
        self._unread.clear()
        for piece in self._reader.forced_text(remaining_tokens):
            self.forced.extend(self._tokenizer.tokenize_bytes(piece))

    def advance(self, token: int) -> None:
        """Take the next token.

        Raises:
            JobFailed: the grammar does not allow it.
        """
        if not self.matcher.consume_token(token):
            raise JobFailed(f"the answer left its grammar: {self.matcher.get_error().splitlines()[0]}")
        self._unread.append(token)

    def to_bytes(self, tokens: Sequence[int]) -> bytes:
        """Bytes of some tokens."""
        return self._tokenizer.decode_bytes(list(tokens))


class TokenMasks:
    """Forbid tokens, for all constrained rows of a step at once.

    Args:
        vocabulary: width of the logits.
        device: where they are.
    """

    def __init__(self, vocabulary: int, device: str) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._bits: Any = None
        self._executor: LLExecutor | None = None

    def apply(self, logits: torch.Tensor, runs: Sequence[tuple[int, GrammarRun]]) -> None:
        """Set the logits of forbidden tokens to minus infinity, in place.

        Args:
            logits: ``[rows, vocabulary]``.
            runs: row and its way through its grammar, for the rows that have one.
        """
        if not runs:
            return
        self._compute([run.matcher for _, run in runs])
        forbidden = self._unpack(len(runs))
        if len(runs) == len(logits):
            logits.masked_fill_(forbidden, -float("inf"))
        else:
            rows = [row for row, _ in runs]
            logits[rows] = logits[rows].masked_fill_(forbidden, -float("inf"))

    def _compute(self, matchers: Sequence[LLMatcher]) -> None:
        import numpy as np
        from llguidance import LLExecutor

        if self._bits is None or len(self._bits) < len(matchers):
            self._bits = np.zeros((len(matchers), (self._vocabulary + 31) // 32), dtype=np.int32)
        row_bytes = self._bits.shape[1] * self._bits.itemsize
        if len(matchers) == 1 or self._vocabulary < _PARALLEL_FROM:
            for row, matcher in enumerate(matchers):
                matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data + row * row_bytes, row_bytes)
            return
        if self._executor is None:
            self._executor = LLExecutor()
        numbered = [(matcher, row) for row, matcher in enumerate(matchers)]
        self._executor.unsafe_compute_mask_ptr(numbered, self._bits.ctypes.data, row_bytes, len(matchers))

    def _unpack(self, rows: int) -> torch.Tensor:
        """Make the bits of allowed tokens a boolean mask of the forbidden ones, ``[rows, vocabulary]``."""
        import numpy as np
        import torch

        bits = ~self._bits[:rows]
        if self._device == "cpu":
            mask = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little", count=self._vocabulary)
            return torch.from_numpy(mask).view(torch.bool)
        packed = torch.from_numpy(bits).to(self._device)
        places = torch.arange(32, dtype=torch.int32, device=self._device)
        return ((packed[:, :, None] >> places) & 1).view(rows, -1)[:, : self._vocabulary].bool()
