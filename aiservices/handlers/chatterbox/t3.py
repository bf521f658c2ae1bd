"""From text tokens to speech tokens: T3's rows, one token a step. Imports torch: import it inside ``load``.

Rows join and leave between steps, each with its voice, guidance, sampling and random numbers. What a row says does not
depend on the rows beside it, and what goes wrong with one (its prompt, its judge, its sampling) ends that row alone:
only an error of the device goes up. The repetition penalty counts BOS; Turbo has no guidance. Source: ``T3.inference``
and ``T3.inference_turbo`` of chatterbox-tts 0.1.7.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from aiservices.errors import JobFailed
from aiservices.handlers.chatterbox.alignment import RowAlignment, Verdict, alignment_heads
from aiservices.handlers.chatterbox.decoding import Decoder, PaddedDecoder
from aiservices.handlers.chatterbox.faults import raise_if_of_device
from aiservices.handlers.chatterbox.slots import Slots
from aiservices.handlers.chatterbox.stacks import Gpt2Stack, LlamaStack
from aiservices.handlers.chatterbox.t3_embedding import T3Embedding
from aiservices.handlers.chatterbox.t3_rows import SPEECH_TOKENS, Choices, Draw, Row, T3Request

_SURE = 2.0**15  # the library's number for what has to be chosen or must not be: it fits into every type


class T3Engine:
    """The rows of one T3.

    Args:
        t3: the library's module, in evaluation mode.
        t3_cond: the library's ``T3Cond``.
        device: where it is.
        capacity: most rows at once.
        fixed_columns: tokens of the longest row, to hold fixed buffers; None to let them grow.
        graphs: whether to capture steps as CUDA graphs, which needs fixed buffers.
        judged: whether :mod:`.alignment` judges each row, as the first multilingual models need it.
    """

    def __init__(
        self,
        t3: Any,
        t3_cond: Any,
        device: str,
        *,
        capacity: int = 16,
        fixed_columns: int | None = None,
        graphs: bool = False,
        judged: bool = False,
    ) -> None:
        self.capacity = capacity
        self.embedding = T3Embedding(t3, t3_cond, device)
        """Turns voices, texts and tokens into what the rows read."""
        self._t3, self._device, self._hp = t3, device, t3.hp
        stack = Gpt2Stack(t3.tfmr) if t3.is_gpt else LlamaStack(t3.tfmr)
        self._aligned = judged
        fixed = None if fixed_columns is None else (2 * capacity, fixed_columns)
        heads = alignment_heads() if self._aligned else None
        self._slots = Slots(stack, device, t3.speech_head.weight.dtype, heads, fixed)
        self._decoder = (
            Decoder(self._slots, device) if fixed is None else PaddedDecoder(self._slots, device, fixed, graphs=graphs)
        )
        self._rows: list[Row] = []
        self._owners: list[Row] = []
        self._hidden: torch.Tensor | None = None
        self._choices = Choices("penalty_last" if t3.is_gpt else "penalty_first")
        self._forbidden = self._forbidden_tokens()

    def __len__(self) -> int:
        return len(self._rows)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Do what a step of any number of rows would have to do the first time."""
        self._decoder.prepare(self._t3.cfg.hidden_size)

    @torch.inference_mode()
    def join(self, requests: Sequence[T3Request]) -> list[tuple[T3Request, Exception]]:
        """Let rows in: read their prompts in one pass.

        Returns:
            The requests that could not join, with why.
        """
        if not requests:
            return []
        try:
            self._join(requests)
        except Exception as error:
            del self._slots.lengths[len(self._owners) :]
            raise_if_of_device(error)
            if len(requests) == 1:
                return [(requests[0], error)]
            return [failed for request in requests for failed in self.join([request])]
        return []

    @torch.inference_mode()
    def step(self) -> list[tuple[T3Request, Draw | Exception]]:
        """Choose the next token of every row.

        Returns:
            The requests that are done; they left by that.
        """
        if not self._rows:
            return []
        logits = self._judged(self._logits())
        broken = (~logits.amax(dim=-1).isfinite()).tolist()  # the largest is NaN where any is
        tokens = self._choices.choose(
            self._rows, logits.nan_to_num_(nan=0.0, neginf=float("-inf")) if any(broken) else logits
        )
        ended: list[tuple[T3Request, Draw | Exception]] = []
        leaving: list[Row] = []
        for row, token, is_broken in zip(self._rows, tokens, broken, strict=True):
            outcome = row.accept(token, self._hp.stop_speech_token, is_broken=is_broken)
            if outcome is not None:
                ended.append((row.request, outcome))
                leaving.append(row)
        poisoned = {row for row, is_broken in zip(self._rows, broken, strict=True) if is_broken}
        self._drop(leaving, poisoned)
        self._advance()
        return ended

    @torch.inference_mode()
    def leave(self, requests: Collection[T3Request]) -> None:
        """Take rows out; those not there are ignored."""
        wanted = set(requests)
        self._drop([row for row in self._rows if row.request in wanted], set())

    @torch.inference_mode()
    def reset(self) -> None:
        """Forget every row."""
        self._rows, self._owners, self._hidden = [], [], None
        self._choices.forget()
        self._slots.clear()

    def _join(self, requests: Sequence[T3Request]) -> None:
        """Let all of them in, or raise and leave everything as it was."""
        rows, prompts = self._new_rows(requests)
        first = len(self._owners)
        hidden, attention = self._slots.prefill(prompts)
        for row in rows:
            if row.alignment is not None:
                row.follow(torch.stack(attention[row.slot - first]).mean(dim=0).cpu(), self._hp.start_speech_token)
        self._hidden = hidden if self._hidden is None else torch.cat([self._hidden, hidden])
        self._rows += rows
        for row in rows:
            self._owners += [row] if row.unconditional_slot is None else [row, row]
        self._choices.forget()

    def _new_rows(self, requests: Sequence[T3Request]) -> tuple[list[Row], list[torch.Tensor]]:
        """Make rows on the next slots, and the prompt of each slot."""
        rows: list[Row] = []
        prompts: list[torch.Tensor] = []
        for request in requests:
            row = self._new_row(request, len(self._owners) + len(prompts))
            rows.append(row)
            prompts.append(self.embedding.prompt(request.condition, request.text))
            if request.cfg_weight > 0 and not self._t3.is_gpt:
                row.unconditional_slot = row.slot + 1
                prompts.append(self.embedding.prompt(request.condition, request.text, unconditional=True))
        return rows, prompts

    def _new_row(self, request: T3Request, slot: int) -> Row:
        if not 0 <= min(request.text) <= max(request.text) < self._t3.text_emb.num_embeddings:
            raise JobFailed("the text has tokens that the model does not have: its tokenizer is of another checkpoint")
        generator = torch.Generator(device=self._device)
        generator.manual_seed(request.seed)
        seen = torch.zeros(self._hp.speech_tokens_dict_size, dtype=torch.bool, device=self._device)
        seen[self._hp.start_speech_token] = True
        start = len(request.condition)
        alignment = RowAlignment(start, start + len(request.text)) if self._aligned else None
        return Row(request, generator, seen, alignment, slot)

    def _logits(self) -> torch.Tensor:
        """Guided logits in float32, ``[rows, vocabulary]``."""
        every: torch.Tensor = self._t3.speech_head(self._hidden).float()
        logits = every[[row.slot for row in self._rows]]
        if any(row.unconditional_slot is not None for row in self._rows):
            slots = [row.slot if row.unconditional_slot is None else row.unconditional_slot for row in self._rows]
            weights = torch.tensor([[row.request.cfg_weight] for row in self._rows], device=self._device)
            logits = logits + weights * (logits - every[slots])
        return logits

    def _judged(self, logits: torch.Tensor) -> torch.Tensor:
        """Heed the judges and forbid the marks."""
        stop = self._hp.stop_speech_token
        held = [number for number, row in enumerate(self._rows) if row.verdict is Verdict.GO_ON]
        ending = [number for number, row in enumerate(self._rows) if row.verdict is Verdict.END]
        if held:
            logits[held, stop] = -_SURE
        if ending:
            logits[ending] = -_SURE
            logits[ending, stop] = _SURE
        return logits.masked_fill_(self._forbidden, float("-inf"))

    def _drop(self, leaving: Sequence[Row], poisoned: Collection[Row]) -> None:
        if not leaving:
            return
        gone = set(leaving)
        hidden = self._hidden
        for slot in range(len(self._owners) - 1, -1, -1):  # from the back, because the last moves into the gap
            owner = self._owners[slot]
            if owner not in gone or hidden is None:
                continue
            self._slots.leave(slot, poisoned=owner in poisoned)
            last = len(self._owners) - 1
            moved = self._owners.pop()
            if slot != last:
                self._owners[slot] = moved
                hidden[slot] = hidden[last]
                if moved.slot == last:
                    moved.slot = slot
                else:
                    moved.unconditional_slot = slot
            hidden = hidden[:last]
        self._rows = [row for row in self._rows if row not in gone]
        self._hidden = hidden if self._rows else None
        self._choices.forget()
        if not self._rows:
            self._slots.clear()

    def _advance(self) -> None:
        """Run the chosen tokens through the model."""
        if not self._rows:
            return
        tokens = [row.tokens[-1] for row in self._owners]
        embedded = self.embedding.speech(tokens, [len(row.tokens) for row in self._owners])
        self._hidden = self._decoder.decode(embedded)
        self._slots.lengths = [length + 1 for length in self._slots.lengths]
        if self._aligned:
            attention = torch.stack(self._slots.attention).mean(dim=0).cpu()
            for row in self._rows:
                row.follow(attention[row.slot], row.tokens[-1])

    def _forbidden_tokens(self) -> torch.Tensor:
        """Which tokens are neither sound nor the end, ``[vocabulary]``."""
        forbidden = torch.arange(self._hp.speech_tokens_dict_size, device=self._device) >= SPEECH_TOKENS
        forbidden[self._hp.stop_speech_token] = False
        return forbidden
