"""One generation under way: its tokens, its text, its stream."""

from __future__ import annotations

import attrs

from aiservices.handler import Task
from aiservices.handlers.text.detokenizer import Detokenizer
from aiservices.handlers.text.generation import FinishReason, Generated, GenerationRequest, Usage
from aiservices.handlers.text.stop import StopTexts

EMIT_EVERY_S = 0.05
"""How often a row reports text and progress at most: smooth to read, and cheap beside the decoding."""


@attrs.define(eq=False)
class Row:
    """One generation under way.

    Attributes:
        detokenizer: turns its tokens into text.
        tokens: what was chosen so far, the end token included.
        text: what went out so far.
        ready: text that goes out with the next report.
        counted: how many of them are counted as made.
        read: tokens whose text is ready or went out, or waits for the rest of a character or of a stop text.
        written_at_s: when it last reported, on the monotonic clock.
    """

    task: Task[GenerationRequest]
    detokenizer: Detokenizer
    tokens: list[int] = attrs.field(factory=list)
    text: list[str] = attrs.field(factory=list)
    ready: str = ""
    counted: int = 0
    read: int = 0
    written_at_s: float = -EMIT_EVERY_S
    _stop: StopTexts = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._stop = StopTexts(self.request.stop)

    @property
    def request(self) -> GenerationRequest:
        """What was asked."""
        return self.task.item

    def stops(self) -> bool:
        """Whether its text has come to a stop text by its latest token. Costs nothing where it has none."""
        if self.request.stop:
            self._read(len(self.tokens))
        return self._stop.found

    def write(self, now_s: float) -> None:
        """Report new text and progress, if it is time.

        Args:
            now_s: seconds on the monotonic clock.
        """
        if now_s - self.written_at_s < EMIT_EVERY_S:
            return
        self.written_at_s = now_s
        self._read(len(self.tokens))
        self._emit()
        self._count()
        self.task.context.progress(len(self.tokens) / self.request.max_new_tokens)

    def finish(self, reason: FinishReason, *, drop_last: bool) -> Generated:
        """Report the rest and sum up.

        Args:
            reason: why it ends; a stop text in what is left counts more.
            drop_last: whether the last token ends the text instead of being part of it.
        """
        self._read(len(self.tokens) - drop_last)
        self.ready += self._stop.add(self.detokenizer.finish()) + self._stop.finish()
        self._emit()
        self._count()
        if self._stop.found:
            reason = "stop"
        prompt = self.request.prompt
        usage = Usage(
            prompt_tokens=len(prompt.token_ids),
            completion_tokens=len(self.tokens),
            picture_tokens=prompt.picture_tokens,
        )
        return Generated("".join(self.text), reason, usage, tuple(self.tokens), self.request.label)

    def _count(self) -> None:
        new, self.counted = len(self.tokens) - self.counted, len(self.tokens)
        self.task.context.count("tokens", new)

    def _read(self, end: int) -> None:
        if self.read < end:
            self.ready += self._stop.add(self.detokenizer.add(self.tokens[self.read : end]))
            self.read = end

    def _emit(self) -> None:
        text, self.ready = self.ready, ""
        if text:
            self.text.append(text)
            self.task.context.emit(text)
