"""Decode many texts at once; rows join and leave between two tokens. Imports torch: import it inside ``load``.

The engine lives on the model's thread. Prompts wait in order of arrival; each step reads one bounded piece of prompts
and then takes one token for every running row. What a row becomes does not depend on the rows beside it (up to the
rounding of the arithmetic), and a row that fails does so alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, ParamSpec, TypeVar

import attrs
import torch
from tokenizers import Tokenizer

from aiservices.errors import JobFailed, OutOfMemory
from aiservices.handler import MediaKind, Task
from aiservices.handlers.backbone import Backbone, Prompts
from aiservices.handlers.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from aiservices.handlers.generation import FinishReason, Generated, GenerationRequest, Usage
from aiservices.handlers.grammar import GrammarRun, TokenMasks
from aiservices.handlers.sampling import NO_TOKEN, Sampler, choose_tokens
from aiservices.handlers.slot_cache import SlotCache

P = ParamSpec("P")
T = TypeVar("T")

EMIT_EVERY_S = 0.05
"""How often a row reports text and progress at most: smooth to read, and cheap beside the decoding."""

Ended = tuple[Task[GenerationRequest], Generated | Exception]


@attrs.define(eq=False)
class Row:
    """One generation under way."""

    task: Task[GenerationRequest]
    sampler: Sampler
    run: GrammarRun | None
    detokenizer: Detokenizer
    tokens: list[int] = attrs.field(factory=list)
    text: list[str] = attrs.field(factory=list)
    written: int = 0
    """Tokens whose text went out or waits for the rest of a character."""
    written_at_s: float = -EMIT_EVERY_S
    alone: bool = False
    """Whether its prompt is read by itself, because reading it in company failed."""
    gone: bool = False
    """Whether it was evicted while its prompt was read."""
    failure: Exception | None = None
    """What to fail with at its next token."""

    @property
    def request(self) -> GenerationRequest:
        """What was asked."""
        return self.task.item

    def write(self, now_s: float) -> None:
        """Report new text and progress, if it is time."""
        if now_s - self.written_at_s < EMIT_EVERY_S:
            return
        self.written_at_s = now_s
        self._say(self.detokenizer.add(self.tokens[self.written :]))
        self.written = len(self.tokens)
        self.task.context.progress(len(self.tokens) / self.request.max_new_tokens)

    def finish(self, reason: FinishReason, *, drop_last: bool) -> Generated:
        """Report the rest and sum up.

        Args:
            reason: why it ends.
            drop_last: whether the last token ends the text instead of being part of it.
        """
        rest = self.tokens[self.written : len(self.tokens) - drop_last]
        self._say(self.detokenizer.add(rest) + self.detokenizer.finish())
        picture = self.request.picture
        usage = Usage(
            prompt_tokens=len(self.request.token_ids),
            completion_tokens=len(self.tokens),
            picture_tokens=picture.tokens if picture else 0,
        )
        return Generated("".join(self.text), reason, usage, tuple(self.tokens))

    def _say(self, text: str) -> None:
        if text:
            self.text.append(text)
            self.task.context.emit(text)


@attrs.define(eq=False)
class _Reading:
    """Rows whose prompts are being read together."""

    rows: list[Row]
    prompts: Prompts


class GenerationEngine:
    """The rows of one model.

    Args:
        backbone: the model.
        tokenizer: turns tokens into text.
        stop_ids: tokens that end an answer.
        prefill_chunk_tokens: how many prompt tokens one step reads at most.
    """

    def __init__(
        self, backbone: Backbone, tokenizer: Tokenizer, stop_ids: Collection[int], prefill_chunk_tokens: int
    ) -> None:
        self._backbone = backbone
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids)
        self._chunk_tokens = prefill_chunk_tokens
        self._masks = TokenMasks(backbone.vocabulary, backbone.device)
        self._waiting: deque[Row] = deque()
        self._reading: _Reading | None = None
        self._running: list[Row] = []
        self._cache = SlotCache(backbone.device)
        self._rope_deltas: torch.Tensor | None = None
        self._ended: list[Ended] = []

    def __len__(self) -> int:
        """Rows that a step has yet to return."""
        reading = sum(not row.gone for row in self._reading.rows) if self._reading else 0
        return len(self._waiting) + reading + len(self._running) + len(self._ended)

    def admit(self, tasks: Sequence[Task[GenerationRequest]]) -> None:
        """Let rows join; their prompts are read in the next steps."""
        for task in tasks:
            try:
                self._waiting.append(self._start(task))
            except Exception as error:
                self._ended.append((task, error))

    def step(self) -> list[Ended]:
        """Read a piece of the waiting prompts, take one token for every running row, return the rows that ended."""
        with torch.inference_mode():
            self._read_prompts()
            self._decode()
        ended, self._ended = self._ended, []
        return ended

    def evict(self, tasks: Sequence[Task[GenerationRequest]]) -> None:
        """Take rows out, wherever they are; unknown ones are ignored."""
        leaving = {id(task) for task in tasks}
        self._waiting = deque(row for row in self._waiting if id(row.task) not in leaving)
        self._ended = [ended for ended in self._ended if id(ended[0]) not in leaving]
        if self._reading is not None:
            for row in self._reading.rows:
                row.gone = row.gone or id(row.task) in leaving
            if all(row.gone for row in self._reading.rows):
                self._reading = None
        with torch.inference_mode():
            self._drop([slot for slot, row in enumerate(self._running) if id(row.task) in leaving])

    def reset(self) -> None:
        """Forget every row and the memory they hold."""
        self._waiting.clear()
        self._reading = None
        self._running = []
        self._cache.clear()
        self._rope_deltas = None
        self._ended = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generated]:
        """Answer these requests alone, as a warm-up does.

        Raises:
            Exception: what the first failed row failed with.
        """
        tasks: list[Task[GenerationRequest]] = [Task(request, _Nobody()) for request in requests]
        self.admit(tasks)
        results: dict[int, Generated] = {}
        while len(self):
            for task, result in self.step():
                if isinstance(result, Exception):
                    self.reset()
                    raise result
                results[id(task)] = result
        return [results[id(task)] for task in tasks]

    def _start(self, task: Task[GenerationRequest]) -> Row:
        request = task.item
        run = request.grammar.start() if request.grammar else None
        return Row(
            task=task,
            sampler=Sampler.start(request, self._backbone.vocabulary, self._backbone.device),
            run=run,
            detokenizer=ByteDetokenizer(run.to_bytes) if run else WindowDetokenizer(self._tokenizer),
        )

    # Prompts

    def _read_prompts(self) -> None:
        if self._reading is None and not self._waiting:
            return
        rows = self._reading.rows if self._reading else self._next_rows()
        try:
            if self._reading is None:
                self._reading = _Reading(rows, self._backbone.prepare([row.request for row in rows]))
            prompts = self._reading.prompts
            logits = self._backbone.read(prompts, max(1, self._chunk_tokens // len(rows)))
        except Exception as error:
            self._reading = None
            self._contain([row for row in rows if not row.gone], error)
            return
        if logits is not None:
            self._reading = None
            self._join(rows, prompts, logits)

    def _next_rows(self) -> list[Row]:
        """Take prompts that together are read in one step, or one that is too long for that."""
        rows = [self._waiting.popleft()]
        widest = len(rows[0].request.token_ids)
        while self._waiting and not (rows[0].alone or self._waiting[0].alone):
            widest = max(widest, len(self._waiting[0].request.token_ids))
            if widest * (len(rows) + 1) > self._chunk_tokens:
                break
            rows.append(self._waiting.popleft())
        return rows

    def _contain(self, rows: list[Row], error: Exception) -> None:
        """Find out which prompt could not be read by reading each alone; a broken device is nobody's fault."""
        if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
            raise error
        if len(rows) == 1:
            self._fail(rows[0], error)
            return
        for row in reversed(rows):
            row.alone = True
            self._waiting.appendleft(row)

    def _join(self, rows: list[Row], prompts: Prompts, logits: torch.Tensor) -> None:
        present = [index for index, row in enumerate(rows) if not row.gone]
        if len(present) < len(rows):
            logits = logits[present]
        tokens = self._choose(logits, [rows[index] for index in present])
        now_s = time.monotonic()
        joining = [
            index for index, token in zip(present, tokens, strict=True) if self._accept(rows[index], token, now_s)
        ]
        if joining:
            self._cache.join(prompts.cache, joining, [prompts.lengths[index] for index in joining])
            self._running.extend(rows[index] for index in joining)
            self._rope_deltas = None

    # Tokens

    def _decode(self) -> None:
        if not self._running:
            return
        if self._rope_deltas is None:
            deltas = [row.request.picture.rope_delta if row.request.picture else 0 for row in self._running]
            self._rope_deltas = torch.tensor(deltas, device=self._backbone.device)
        logits = self._backbone.decode([row.tokens[-1] for row in self._running], self._cache, self._rope_deltas)
        tokens = self._choose(logits, self._running)
        now_s = time.monotonic()
        leaving = [
            slot
            for slot, (row, token) in enumerate(zip(self._running, tokens, strict=True))
            if not self._accept(row, token, now_s)
        ]
        self._drop(leaving, poisoned={slot for slot in leaving if tokens[slot] == NO_TOKEN})

    def _choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
        runs = [(index, row.run) for index, row in enumerate(rows) if row.run is not None]
        for index, run in runs:
            try:
                run.watch(rows[index].request.max_new_tokens - len(rows[index].tokens))
            except Exception as error:
                rows[index].failure = error
        self._masks.apply(logits, [(index, run) for index, run in runs if not run.forced])
        tokens = choose_tokens(logits, [row.sampler for row in rows])
        for index, run in runs:
            if run.forced and tokens[index] != NO_TOKEN:
                tokens[index] = run.forced.popleft()
        return tokens

    def _accept(self, row: Row, token: int, now_s: float) -> bool:
        """Add a token to a row; False if that ended it."""
        try:
            return self._advance(row, token, now_s)
        except Exception as error:
            self._fail(row, error)
            return False

    def _advance(self, row: Row, token: int, now_s: float) -> bool:
        if row.failure is not None:
            raise row.failure
        if token == NO_TOKEN:
            raise JobFailed("the model's output was not a number; it may be damaged or of too narrow a type")
        row.tokens.append(token)
        row.sampler.note(token)
        stops = token in self._stop_ids
        if row.run is not None and not stops:
            row.run.advance(token)
        if stops or (row.run is not None and row.run.complete):
            self._finish(row, "stop", drop_last=stops)
        elif len(row.tokens) >= row.request.max_new_tokens:
            self._finish(row, "length", drop_last=False)
        else:
            row.write(now_s)
            return True
        return False

    def _finish(self, row: Row, reason: FinishReason, *, drop_last: bool) -> None:
        self._ended.append((row.task, row.finish(reason, drop_last=drop_last)))

    def _fail(self, row: Row, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            error = OutOfMemory("the device ran out of memory while it read the prompt")
        self._ended.append((row.task, error))

    def _drop(self, slots: Sequence[int], poisoned: Collection[int] = ()) -> None:
        for slot in reversed(slots):  # from the back, because the last row moves into the gap
            self._cache.leave(slot, poisoned=slot in poisoned)
            last = self._running.pop()
            if slot < len(self._running):
                self._running[slot] = last
        if slots:
            self._rope_deltas = None


class _Nobody:
    """Listens to a warm-up."""

    job_id = "warm-up"
    cancelled = False

    def progress(self, fraction: float) -> None:
        pass

    def emit(self, chunk: Any) -> None:
        pass

    async def fetch(self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None) -> bytes:
        raise NotImplementedError

    async def run_in_pool(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        raise NotImplementedError
