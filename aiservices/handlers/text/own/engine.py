"""Decode many texts at once; rows join and leave between two tokens. Imports torch: import it inside ``load``.

The engine lives on the model's thread. Prompts wait in order of arrival; each step reads one bounded piece of prompts
and then takes one token for every running row. What a row becomes does not depend on the rows beside it (up to the
rounding of the arithmetic), and a row that fails does so alone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from aiservices.errors import JobFailed, OutOfMemory
from aiservices.handler import Task
from aiservices.handlers.text.detokenizer import make_detokenizer
from aiservices.handlers.text.engine import Ended
from aiservices.handlers.text.generation import FinishReason, GenerationRequest, Prompt
from aiservices.handlers.text.grammar import TokenMasks
from aiservices.handlers.text.own.backbone import Backbone
from aiservices.handlers.text.own.picture_reader import PictureReader
from aiservices.handlers.text.own.prefix_cache import PrefixCache
from aiservices.handlers.text.own.prompt_reader import PromptReader, PromptsRead, PromptUnreadable
from aiservices.handlers.text.own.room import Room
from aiservices.handlers.text.own.row import OwnRow
from aiservices.handlers.text.own.sampling import NO_TOKEN, RowSamplers, Sampler
from aiservices.handlers.text.own.slot_cache import SlotCache

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage


class OwnEngine:
    """The rows of one model, as :class:`~aiservices.handlers.text.engine.TextEngine` has it.

    Args:
        backbone: the model.
        tokenizer: turns tokens into text.
        stop_ids: tokens that end an answer.
        prefill_chunk_tokens: how many prompt tokens one step reads at most.
        pictures: turns pictures into what the model sees; None for one that sees nothing.
        cache_tokens: bound of the rows' memory, in rows times tokens of the longest; None for none.
        prefixes: beginnings of prompts that are kept; None keeps none.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: Tokenizer,
        stop_ids: Collection[int],
        prefill_chunk_tokens: int,
        pictures: PictureReader | None = None,
        cache_tokens: int | None = None,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self.window = min(backbone.window, cache_tokens or backbone.window)
        self.vocabulary = backbone.vocabulary
        self._pictures = pictures
        self._backbone = backbone
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids)
        self._prompts = PromptReader(backbone, prefill_chunk_tokens, prefixes)
        self._masks = TokenMasks(backbone.vocabulary, backbone.device)
        self._running: list[OwnRow] = []
        self._numbers = itertools.count()
        self._cache = SlotCache(backbone.device, cache_tokens, padded=backbone.padded is not None)
        self._room = Room(self._cache, backbone.device, self._forget)
        self._rope_deltas: torch.Tensor | None = None
        self._samplers = RowSamplers([], backbone.device)
        self._ended: list[Ended] = []

    def __len__(self) -> int:
        """Rows that a step has yet to return."""
        return len(self._prompts) + len(self._running) + len(self._ended)

    def render(self, token_ids: Sequence[int], pictures: Sequence[PilImage] = ()) -> Prompt:
        """Make a prompt. Usable from several threads at once."""
        if not pictures or self._pictures is None:
            return Prompt(token_ids)
        return self._pictures.read(token_ids, pictures)

    def admit(self, tasks: Sequence[Task[GenerationRequest]]) -> None:
        """Let rows join; their prompts are read in the next steps."""
        for task in tasks:
            try:
                self._room.check(task.item)
                self._prompts.add(self._start(task))
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
        self._prompts.evict(leaving)
        self._ended = [ended for ended in self._ended if id(ended[0]) not in leaving]
        with torch.inference_mode():
            self._drop([slot for slot, row in enumerate(self._running) if id(row.task) in leaving])

    def reset(self) -> None:
        """Forget every row and the memory they hold."""
        self._prompts.clear()
        self._running = []
        self._cache.clear()
        self._rope_deltas = None
        self._samplers = RowSamplers([], self._backbone.device)
        self._ended = []
        self._forget()

    def close(self) -> None:
        """Forget every row; the model goes with the engine."""
        self.reset()

    def _start(self, task: Task[GenerationRequest]) -> OwnRow:
        request = task.item
        run = request.grammar.start() if request.grammar else None
        return OwnRow(
            task=task,
            sampler=Sampler.start(request, self._backbone.vocabulary, self._backbone.device),
            run=run,
            detokenizer=make_detokenizer(request, self._tokenizer),
            number=next(self._numbers),
        )

    def _forget(self) -> None:
        self._prompts.forget()
        self._backbone.forget()

    def _read_prompts(self) -> None:
        match self._prompts.read(self._room.fits):
            case PromptsRead() as read:
                self._join(read)
            case PromptUnreadable(row, torch.OutOfMemoryError()) if self._running:
                self._room.shrink([len(row.prompt.token_ids)])
                self._prompts.put_back(row)  # until others have left
            case PromptUnreadable(row, error):
                self._fail(row, error)

    def _join(self, read: PromptsRead) -> None:
        """Choose the first token of rows whose prompts are read; those that do not end with it run from now on."""
        tokens = self._choose(read.logits, read.rows)
        now_s = time.monotonic()
        joining = [
            (row, place)
            for row, place, token in zip(read.rows, read.places, tokens, strict=True)
            if self._accept(row, token, now_s)
        ]
        left = self._room.take(read.prompts, joining)
        if len(left) == 1 and not joining and not self._running:
            self._fail(left.pop(), torch.OutOfMemoryError())
        for row in left:
            self._prompts.put_back(row)
        self._running.extend(row for row, _ in joining)
        self._rope_deltas = None

    def _decode(self) -> None:
        logits = self._next_logits()
        if logits is None:
            return
        tokens = self._choose(logits, self._running)
        now_s = time.monotonic()
        leaving = [
            slot
            for slot, (row, token) in enumerate(zip(self._running, tokens, strict=True))
            if not self._accept(row, token, now_s)
        ]
        self._drop(leaving, poisoned={slot for slot in leaving if tokens[slot] == NO_TOKEN})

    def _next_logits(self) -> torch.Tensor | None:
        """Read every row's latest token. Where there is no room, the newest row makes way; None without rows."""
        while self._running:
            if self._room.fits_next():
                try:
                    deltas = self._deltas()
                    return self._backbone.decode([row.tokens[-1] for row in self._running], self._cache, deltas)
                except torch.OutOfMemoryError:
                    self._room.shrink()
            slot = max(range(len(self._running)), key=lambda slot: self._running[slot].number)
            row = self._running[slot]
            if len(self._running) > 1:
                self._prompts.put_back(row)
            else:
                self._fail(row, torch.OutOfMemoryError())
            self._drop([slot])
        return None

    def _deltas(self) -> torch.Tensor:
        if self._rope_deltas is None:
            contents = [row.request.prompt.content for row in self._running]
            deltas = [0 if content is None else content.rope_delta for content in contents]
            self._rope_deltas = torch.tensor(deltas, device=self._backbone.device)
        return self._rope_deltas

    def _choose(self, logits: torch.Tensor, rows: Sequence[OwnRow]) -> list[int]:
        runs = [(index, row.run) for index, row in enumerate(rows) if row.run is not None]
        for index, run in runs:
            try:
                run.check_budget(rows[index].request.max_new_tokens - len(rows[index].tokens))
            except Exception as error:
                rows[index].failure = error
        self._masks.apply(logits, [(index, run) for index, run in runs if not run.forced])
        samplers = tuple(row.sampler for row in rows)
        if self._samplers.samplers != samplers:
            self._samplers = RowSamplers(samplers, self._backbone.device)
        return self._samplers.choose(logits, {index: run.forced.popleft() for index, run in runs if run.forced})

    def _accept(self, row: OwnRow, token: int, now_s: float) -> bool:
        """Add a token to a row; False if that ended it."""
        try:
            return self._advance(row, token, now_s)
        except Exception as error:
            self._fail(row, error)
            return False

    def _advance(self, row: OwnRow, token: int, now_s: float) -> bool:
        if row.failure is not None:
            raise row.failure
        if token == NO_TOKEN:
            raise JobFailed("the model's output was not a number; it may be damaged or of too narrow a type")
        row.tokens.append(token)
        stops = token in self._stop_ids
        if row.run is not None and not stops:
            row.run.advance(token)
        if stops or (row.run is not None and row.run.complete):
            self._finish(row, "stop", drop_last=stops)
        elif row.stops():
            self._finish(row, "stop", drop_last=False)
        elif len(row.tokens) >= row.request.max_new_tokens:
            self._finish(row, "length", drop_last=False)
        else:
            row.write(now_s)
            return True
        return False

    def _finish(self, row: OwnRow, reason: FinishReason, *, drop_last: bool) -> None:
        self._ended.append((row.task, row.finish(reason, drop_last=drop_last)))

    def _fail(self, row: OwnRow, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            error = OutOfMemory("the device ran out of memory for this request alone")
        self._ended.append((row.task, error))

    def _drop(self, slots: Sequence[int], poisoned: Collection[int] = ()) -> None:
        for slot in reversed(slots):  # from the back, because the last row moves into the gap
            self._cache.leave(slot, poisoned=slot in poisoned)
            last = self._running.pop()
            if slot < len(self._running):
                self._running[slot] = last
            self._room.grow()
        if slots:
            self._rope_deltas = None
