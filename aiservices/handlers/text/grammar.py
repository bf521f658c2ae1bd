"""Hold rows to a JSON schema while they are generated, with llguidance; each row by itself, beside free rows.

llguidance and numpy are imported when asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from aiservices.errors import JobFailed, ServiceError
from aiservices.handlers.text.json_budget import JsonPlan
from aiservices.handlers.text.json_nodes import Record, to_grammar, to_schema
from aiservices.handlers.text.json_reader import JsonReader
from aiservices.handlers.text.json_schema import MAX_DEPTH, read_schema
from aiservices.handlers.text.json_tokens import JsonTokens

if TYPE_CHECKING:
    import numpy as np
    import torch
    from llguidance import LLExecutor, LLMatcher
    from numpy.typing import NDArray

_PARALLEL_FROM = 16_384
"""Tokens from which masks are worth several threads; below it, waking them takes longer than the masks."""


@attrs.frozen(eq=False)
class Grammar:
    """A compiled schema of an object; shared by any number of rows.

    Attributes:
        schema: what the answers follow, the same for schemas that mean the same.
        tokens: which are chosen from.
        matcher: at the beginning of an object; copied for each row.
        plan: what the object costs in tokens from any place in it.
    """

    schema: Mapping[str, Any]
    tokens: JsonTokens
    matcher: LLMatcher
    plan: JsonPlan

    @property
    def least_tokens(self) -> int:
        """The smallest budget that gives every value a few tokens; with it, the answer is always complete."""
        return self.plan.least_tokens

    @classmethod
    def compile(cls, schema: Mapping[str, Any] | Record, tokens: JsonTokens) -> Grammar:
        """Compile a schema; takes milliseconds.

        Args:
            schema: as :func:`~aiservices.handlers.text.json_schema.read_schema` takes or gives it.
            tokens: which are to be chosen from.

        Raises:
            InvalidInput: the schema asks for what is not supported.
            ServiceError: it does not compile, or there are no tokens for some of its bytes.
        """
        from llguidance import LLMatcher

        root = schema if isinstance(schema, Record) else read_schema(schema)
        matcher = LLMatcher(tokens.tokenizer, to_grammar(root))
        if matcher.is_error():
            raise ServiceError(f"the grammar does not compile: {matcher.get_error()}")
        return cls(to_schema(root), tokens, matcher, JsonPlan(root, tokens.count))

    def to_bytes(self, tokens: Sequence[int]) -> bytes:
        """Bytes of some tokens."""
        return self.tokens.decode(tokens)

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
        self._hurried = self._ends_array = False
        self.matcher = grammar.matcher.deep_copy()
        self.tokens = grammar.tokens
        # One token may begin so many items that need not be there; and an answer may stand in some already.
        self._leap = self.tokens.separators * grammar.plan.item_tokens
        self._check_below = grammar.least_tokens + self._leap + MAX_DEPTH * grammar.plan.item_tokens
        self._reader = JsonReader(grammar.plan)
        self._unread: list[int] = []

    @property
    def complete(self) -> bool:
        """Whether the object is closed."""
        return self.matcher.is_stopped()

    def check_budget(self, remaining_tokens: int) -> None:
        """Force the next tokens, or hurry, if the budget requires it. Cheap as long as there is plenty.

        Args:
            remaining_tokens: how many tokens may still come.
        """
        if self.forced or remaining_tokens > self._check_below:
            return
        self._reader.feed(self.to_bytes(self._unread))
        self._unread.clear()
        self._hurried = remaining_tokens <= self._reader.needs() + self._leap
        if self._hurried:
            self._ends_array = self._reader.ends_array(remaining_tokens)
            for piece in self._reader.forced_text(remaining_tokens):
                self.forced.extend(self.tokens.encode(piece))

    def keep_small(self, allowed: NDArray[np.int32]) -> None:
        """Forbid all but small tokens, and one more number in an array, if the budget requires it.

        Args:
            allowed: bits of the tokens that the grammar allows, ``[vocabulary / 32]``; changed in place.
        """
        if not self._hurried:
            return
        small = allowed & self.tokens.small[: len(allowed)]
        if self._ends_array:
            small &= ~self.tokens.commas[: len(allowed)]
        # Where its grammar leaves one way only, llguidance allows no other token than the longest along it.
        if small.any():
            allowed[:] = small

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
        return self.tokens.decode(tokens)


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
        for place, (_, run) in enumerate(runs):
            run.keep_small(self._bits[place])
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
