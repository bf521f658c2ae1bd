"""vLLM's grammars, ended in time. Runs in the engine's process; imports vllm.

vLLM holds an answer to its schema token by token, but cuts it where its tokens run out, in the middle of a string. Here
the package's own budget (:mod:`aiservices.handlers.text.json_budget`) decides when a string has to be closed: the mask
of allowed tokens then holds one token only.
"""

from __future__ import annotations

import json

import torch
from vllm.v1.structured_output.backend_guidance import GuidanceBackend
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar, StructuredOutputOptions

from aiservices.errors import JobFailed
from aiservices.handlers.text.grammar import GrammarRun
from aiservices.handlers.text.grammar_cache import GrammarCache
from aiservices.handlers.text.json_schema import read_schema
from aiservices.handlers.text.json_tokens import JsonTokens
from aiservices.handlers.text.vllm.plugin import BUDGET_KEY

_CACHED_SCHEMAS = 64


class BudgetBackend(GuidanceBackend):  # type: ignore[misc]  # vllm may be absent where types are checked
    """vLLM's llguidance, with a budget for schemas that name one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._grammars = GrammarCache(JsonTokens.of(self.ll_tokenizer), _CACHED_SCHEMAS)

    def compile_grammar(
        self, request_type: StructuredOutputOptions, grammar_spec: str, stop_token_ids: set[int] | None = None
    ) -> StructuredOutputGrammar:
        """Begin a request's grammar."""
        schema = json.loads(grammar_spec) if request_type == StructuredOutputOptions.JSON else {}
        if BUDGET_KEY not in schema:
            return super().compile_grammar(request_type, grammar_spec, stop_token_ids)
        max_tokens = schema.pop(BUDGET_KEY)
        grammar = self._grammars.get(read_schema(schema))
        return BudgetGrammar(grammar.start(), max_tokens, self.ll_tokenizer.eos_token)


class BudgetGrammar(StructuredOutputGrammar):  # type: ignore[misc]  # as above
    """One request's way through its grammar, as vLLM's scheduler follows it.

    Args:
        run: at the beginning of the object.
        max_tokens: how many tokens the object may have; the end token is not counted.
        end_token: what ends an answer.
    """

    def __init__(self, run: GrammarRun, max_tokens: int, end_token: int) -> None:
        self._run = run
        self._left = max_tokens
        self._end_token = end_token
        self._ended = False

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        """Take tokens that were chosen; False if the grammar does not allow them."""
        for token in tokens:
            if self._run.complete or self._ended:
                self._ended = self._ended or token == self._end_token
                continue
            if self._run.forced:
                self._run.forced.popleft()
            try:
                self._run.advance(token)
            except JobFailed:
                return False
            self._left -= 1
        return True

    def fill_bitmask(self, bitmask: torch.Tensor, idx: int) -> None:
        """Write which tokens may come next, ``[requests, vocabulary / 32]``, a bit each."""
        if not self._run.complete:
            self._run.check_budget(self._left)
        if self._run.forced:
            token = self._run.forced[0]
            bitmask[idx].zero_()
            bitmask[idx, token // 32] = _bit(token % 32)
        else:
            row = bitmask[idx]
            self._run.matcher.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * row.element_size())
            self._run.keep_small(row.numpy())

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        """Say which of some drafted tokens would be allowed: none is drafted here."""
        return []

    def rollback(self, num_tokens: int) -> None:
        """Take back drafted tokens.

        Raises:
            NotImplementedError: always; there are none.
        """
        raise NotImplementedError("speculative decoding does not go with a budget")

    def is_terminated(self) -> bool:
        """Whether the answer has ended."""
        return self._ended

    def reset(self) -> None:
        """Begin again; vLLM does so nowhere."""
        raise NotImplementedError


def _bit(place: int) -> int:
    """A word of 32 bits with one of them set, as a signed number."""
    return 1 << place if place < 31 else -(1 << 31)
