"""One generation under way: its tokens, its text, its stream."""

from __future__ import annotations

import attrs

from aiservices.handler import Task
from aiservices.handlers.text.detokenizer import Detokenizer
from aiservices.handlers.text.generation import FinishReason, Generated, GenerationRequest, Usage

EMIT_EVERY_S = 0.05
"""How often a row reports text and progress at most: smooth to read, and cheap beside the decoding."""


@attrs.define(eq=False)
class Row:
    """One generation under way.

    Attributes:
        detokenizer: turns its tokens into text.
        tokens: what was chosen so far, the end token included.
        text: what went out so far.
        counted: how many of them are counted as made.
        written: tokens whose text went out or waits for the rest of a character.
        written_at_s: when that was, on the monotonic clock.
    """

    task: Task[GenerationRequest]
    detokenizer: Detokenizer
    tokens: list[int] = attrs.field(factory=list)
    text: list[str] = attrs.field(factory=list)
    counted: int = 0
    written: int = 0
    written_at_s: float = -EMIT_EVERY_S

    @property
    def request(self) -> GenerationRequest:
        """What was asked."""
        return self.task.item

    def write(self, now_s: float) -> None:
        """Report new text and progress, if it is time.

        Args:
            now_s: seconds on the monotonic clock.
        """
        if now_s - self.written_at_s < EMIT_EVERY_S:
            return
        self.written_at_s = now_s
        self._emit(self.detokenizer.add(self.tokens[self.written :]))
        self.written = len(self.tokens)
        self._count()
        self.task.context.progress(len(self.tokens) / self.request.max_new_tokens)

    def finish(self, reason: FinishReason, *, drop_last: bool) -> Generated:
        """Report the rest and sum up.

        Args:
            reason: why it ends.
            drop_last: whether the last token ends the text instead of being part of it.
        """
        rest = self.tokens[self.written : len(self.tokens) - drop_last]
        self._emit(self.detokenizer.add(rest) + self.detokenizer.finish())
        self._count()
        prompt = self.request.prompt
        usage = Usage(
            prompt_tokens=len(prompt.token_ids),
            completion_tokens=len(self.tokens),
            picture_tokens=prompt.picture_tokens,
        )
        return Generated("".join(self.text), reason, usage, tuple(self.tokens))

    def _count(self) -> None:
        new, self.counted = len(self.tokens) - self.counted, len(self.tokens)
        self.task.context.count("tokens", new)

    def _emit(self, text: str) -> None:
        if text:
            self.text.append(text)
            self.task.context.emit(text)
