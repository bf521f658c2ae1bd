"""From text tokens to speech tokens: T3's rows, one token a step. Imports torch: import it inside ``load``.

Rows join and leave between steps, each with its voice, guidance, sampling and random numbers. What a row says does not
depend on the rows beside it. A prompt is ``[conditioning, text, BOS, BOS]`` with both BOS at position 0; the row
without text that classifier-free guidance compares with keeps the text's positions; the repetition penalty counts BOS.
Turbo has one BOS, no positions of its own and no guidance. Source: ``T3.inference`` and ``T3.inference_turbo`` of
chatterbox-tts 0.1.7.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import attrs
import torch

from aiservices.errors import JobFailed
from aiservices.handlers.chatterbox.alignment import RowAlignment, spied_heads
from aiservices.handlers.chatterbox.decoding import Decoder, PaddedDecoder
from aiservices.handlers.chatterbox.sampling import Sampler, Sampling
from aiservices.handlers.chatterbox.stacks import Gpt2Stack, LlamaStack, Slots

SPEECH_TOKENS = 6561
"""Ids from here on are marks, not sound."""


@attrs.frozen(eq=False)
class T3Request:
    """One piece to speak.

    Args:
        condition: voice and liveliness from :meth:`T3Engine.condition`, ``[tokens, width]``.
        text: ids with their start and end marks.
        cfg_weight: strength of the guidance; 0 takes half the work.
        sampling: how to choose.
        seed: of the row's generator.
        max_new_tokens: where a speech that does not end is cut.
    """

    condition: torch.Tensor
    text: Sequence[int]
    cfg_weight: float
    sampling: Sampling
    seed: int
    max_new_tokens: int


@attrs.frozen(eq=False)
class Draw:
    """What came of one request.

    Args:
        tokens: speech tokens without marks.
        ended: whether the model ended it; if not, it was cut.
        generator: the row's, as the last choice left it: the sound's noise comes from it too.
    """

    tokens: list[int]
    ended: bool
    generator: torch.Generator


@attrs.define(eq=False)
class _Row:
    request: T3Request
    generator: torch.Generator
    seen: torch.Tensor
    alignment: RowAlignment | None
    slot: int
    blind_slot: int | None = None
    """Where the row without text is; None without guidance."""
    tokens: list[int] = attrs.field(factory=list)


class T3Engine:
    """The rows of one T3.

    Args:
        t3: the library's module, in evaluation mode.
        t3_cond: the library's ``T3Cond``.
        device: where it is.
        capacity: most rows at once.
        fixed_columns: tokens of the longest row, to hold fixed buffers; None to let them grow.
        graphs: whether to capture steps as CUDA graphs, which needs fixed buffers.
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
    ) -> None:
        self.capacity = capacity
        self._t3, self._t3_cond, self._device, self._hp = t3, t3_cond, device, t3.hp
        self._dtype: torch.dtype = t3.speech_head.weight.dtype
        stack = Gpt2Stack(t3.tfmr) if t3.is_gpt else LlamaStack(t3.tfmr)
        self._aligned = bool(t3.hp.is_multilingual)
        fixed = None if fixed_columns is None else (2 * capacity, fixed_columns)
        self._slots = Slots(stack, device, self._dtype, spied_heads() if self._aligned else None, fixed)
        self._decoder = (
            Decoder(self._slots, device) if fixed is None else PaddedDecoder(self._slots, device, fixed, graphs=graphs)
        )
        self._rows: list[_Row] = []
        self._owners: list[_Row] = []
        self._hidden: torch.Tensor | None = None
        self._sampler: Sampler | None = None
        self._forbidden = self._forbidden_tokens()

    def __len__(self) -> int:
        return len(self._rows)

    @torch.inference_mode()
    def condition(self, speaker: torch.Tensor, prompt: torch.Tensor | None, exaggeration: float) -> torch.Tensor:
        """Embed a voice.

        Args:
            speaker: the voice encoder's embedding, ``[1, 256]``.
            prompt: speech tokens of the clip, ``[1, tokens]``.
            exaggeration: how lively.

        Returns:
            ``[tokens, width]``.
        """
        cond = self._t3_cond(
            speaker_emb=speaker.clone(),
            cond_prompt_speech_tokens=prompt,
            emotion_adv=torch.full((1, 1, 1), exaggeration),
        ).to(device=self._device, dtype=self._dtype)
        embedded: torch.Tensor = self._t3.prepare_conditioning(cond)[0]
        return embedded

    @torch.inference_mode()
    def join(self, requests: Sequence[T3Request]) -> None:
        """Let rows in: read their prompts in one pass."""
        if not requests:
            return
        prompts: list[torch.Tensor] = []
        owners: list[_Row] = []
        rows: list[_Row] = []
        first = len(self._owners)
        for request in requests:
            row = self._new_row(request, first + len(prompts))
            rows.append(row)
            prompts.append(self._prompt(request))
            owners.append(row)
            if request.cfg_weight > 0 and not self._t3.is_gpt:
                row.blind_slot = first + len(prompts)
                prompts.append(self._prompt(request, blind=True))
                owners.append(row)
        hidden, spied = self._slots.prefill(prompts)
        for row in rows:
            if row.alignment is not None:
                row.alignment.begin(spied[row.slot - first])
        self._hidden = hidden if self._hidden is None else torch.cat([self._hidden, hidden])
        self._rows += rows
        self._owners += owners
        self._sampler = None

    @torch.inference_mode()
    def step(self) -> list[tuple[T3Request, Draw | Exception]]:
        """Choose the next token of every row.

        Returns:
            The requests that are done; they left by that.
        """
        if not self._rows:
            return []
        logits = self._logits()
        dead = (~logits.amax(dim=-1).isfinite()).tolist()  # the largest is NaN where any is
        tokens = self._choose(logits.nan_to_num_(nan=0.0, neginf=float("-inf")) if any(dead) else logits)
        ended: list[tuple[T3Request, Draw | Exception]] = []
        leaving: list[_Row] = []
        for row, token, is_dead in zip(self._rows, tokens, dead, strict=True):
            outcome = self._note(row, token, is_dead=is_dead)
            if outcome is not None:
                ended.append((row.request, outcome))
                leaving.append(row)
        poisoned = {row for row, is_dead in zip(self._rows, dead, strict=True) if is_dead}
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
        self._rows, self._owners, self._hidden, self._sampler = [], [], None, None
        self._slots.clear()

    def _new_row(self, request: T3Request, slot: int) -> _Row:
        generator = torch.Generator(device=self._device)
        generator.manual_seed(request.seed)
        seen = torch.zeros(self._hp.speech_tokens_dict_size, dtype=torch.bool, device=self._device)
        seen[self._hp.start_speech_token] = True
        start = len(request.condition)
        text = (start, start + len(request.text))
        alignment = RowAlignment(text, self._hp.stop_speech_token) if self._aligned else None
        return _Row(request, generator, seen, alignment, slot)

    def _prompt(self, request: T3Request, *, blind: bool = False) -> torch.Tensor:
        """Embed a prompt, ``[tokens, width]``; without the text's own part if ``blind``."""
        t3 = self._t3
        ids = torch.tensor([list(request.text)], device=self._device)
        text, bos = t3.text_emb(ids), self._embedded_speech([self._hp.start_speech_token], [0])
        if blind:
            text = torch.zeros_like(text)
        if t3.text_pos_emb is not None:
            text = text + t3.text_pos_emb(ids)
        return torch.cat([request.condition, text[0], *([bos] if t3.is_gpt else [bos, bos])])

    def _embedded_speech(self, tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Embed speech tokens, ``[tokens, width]``."""
        out: torch.Tensor = self._t3.speech_emb(torch.tensor(tokens, device=self._device))
        if self._t3.speech_pos_emb is not None:
            out = out + self._t3.speech_pos_emb.emb(torch.tensor(positions, device=self._device))
        return out

    def _logits(self) -> torch.Tensor:
        """Guided logits in float32, ``[rows, vocabulary]``, marks forbidden."""
        logits: torch.Tensor = self._t3.speech_head(self._hidden).float()
        sighted = logits[[row.slot for row in self._rows]]
        if all(row.blind_slot is None for row in self._rows):
            logits = sighted
        else:
            blind = logits[[row.slot if row.blind_slot is None else row.blind_slot for row in self._rows]]
            weights = torch.tensor([[row.request.cfg_weight] for row in self._rows], device=self._device)
            logits = sighted + weights * (sighted - blind)
        for number, row in enumerate(self._rows):
            if row.alignment is not None:
                last = row.tokens[-1] if row.tokens else self._hp.start_speech_token
                logits[number] = row.alignment.judge(logits[number], last)
        return logits.masked_fill_(self._forbidden, float("-inf"))

    def _choose(self, logits: torch.Tensor) -> list[int]:
        if self._sampler is None:
            seen = torch.stack([row.seen for row in self._rows])
            for number, row in enumerate(self._rows):
                row.seen = seen[number]
            self._sampler = Sampler(
                [row.request.sampling for row in self._rows],
                seen,
                [row.generator for row in self._rows],
                "penalty_last" if self._t3.is_gpt else "penalty_first",
            )
        tokens: list[int] = self._sampler.choose(logits).tolist()
        return tokens

    def _note(self, row: _Row, token: int, *, is_dead: bool) -> Draw | Exception | None:
        """Add a token to its row; return what came of the row if that was its last."""
        if is_dead:
            return JobFailed("the model's output was not a number; it may be damaged or of too narrow a type")
        row.tokens.append(token)
        ended = token == self._hp.stop_speech_token
        if not ended and len(row.tokens) < row.request.max_new_tokens:
            return None
        return Draw([token for token in row.tokens if token < SPEECH_TOKENS], ended, row.generator)

    def _drop(self, leaving: Sequence[_Row], poisoned: Collection[_Row]) -> None:
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
                    moved.blind_slot = slot
            hidden = hidden[:last]
        self._rows = [row for row in self._rows if row not in gone]
        self._hidden = hidden if self._rows else None
        self._sampler = None
        if not self._rows:
            self._slots.clear()

    def _advance(self) -> None:
        """Run the chosen tokens through the model."""
        if not self._rows:
            return
        tokens = [row.tokens[-1] for row in self._owners]
        embedded = self._embedded_speech(tokens, [len(row.tokens) for row in self._owners])
        self._hidden = self._decoder.decode(embedded)
        self._slots.lengths = [length + 1 for length in self._slots.lengths]
        if self._aligned:
            attention = torch.stack(self._slots.spied).mean(dim=0).cpu()
            for row in self._rows:
                if row.alignment is not None:
                    row.alignment.follow(attention[row.slot])

    def _forbidden_tokens(self) -> torch.Tensor:
        """Which tokens are neither sound nor the end, ``[vocabulary]``."""
        forbidden = torch.arange(self._hp.speech_tokens_dict_size, device=self._device) >= SPEECH_TOKENS
        forbidden[self._hp.stop_speech_token] = False
        return forbidden
