"""Embed what T3 reads: voices, texts and speech tokens. Imports torch: import it inside ``load``.

A prompt is ``[conditioning, text, BOS, BOS]`` with both BOS at position 0; the row without text that classifier-free
guidance compares with keeps the text's positions. Turbo has one BOS and no positions of its own. Source:
``T3.prepare_input_embeds``, ``T3.inference`` and ``T3.inference_turbo`` of chatterbox-tts 0.1.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


def _attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attend as the library does, but leave the switches of the process alone: other threads attend meanwhile."""
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


class T3Embedding:
    """The embeddings of one T3.

    Args:
        t3: the library's module, in evaluation mode.
        t3_cond: the library's ``T3Cond``.
        device: where it is.
    """

    def __init__(self, t3: Any, t3_cond: Any, device: str) -> None:
        self._t3, self._t3_cond, self._device = t3, t3_cond, device
        self._dtype: torch.dtype = t3.speech_head.weight.dtype
        if t3.cond_enc.perceiver is not None:
            t3.cond_enc.perceiver.attn.attention.flash_attention = _attended

    @torch.inference_mode()
    def condition(self, speaker: torch.Tensor, prompt: torch.Tensor | None, exaggeration: float) -> torch.Tensor:
        """Embed a voice.

        Args:
            speaker: the voice encoder's embedding, ``[1, 256]``.
            prompt: speech tokens of the clip, ``[1, tokens]``.
            exaggeration: how lively, 0 to 2; 0.5 is normal.

        Returns:
            ``[tokens, width]``.
        """
        for given in (speaker, prompt):
            if given is not None and given.is_cuda:  # of another stream, which must not write its next voice there yet
                given.record_stream(torch.cuda.current_stream())
        cond = self._t3_cond(
            speaker_emb=speaker.clone(),
            cond_prompt_speech_tokens=prompt,
            emotion_adv=torch.full((1, 1, 1), exaggeration),
        ).to(device=self._device, dtype=self._dtype)
        embedded: torch.Tensor = self._t3.prepare_conditioning(cond)[0]
        return embedded

    def prompt(self, condition: torch.Tensor, text: Sequence[int], *, unconditional: bool = False) -> torch.Tensor:
        """Embed all that is read before the first token is chosen.

        Args:
            condition: of the voice, from :meth:`condition`.
            text: ids with their start and end marks.
            unconditional: leave out the text's own part but not its positions, for guidance to compare with.

        Returns:
            ``[tokens, width]``.
        """
        ids = torch.tensor([list(text)], device=self._device)
        embedded, bos = self._t3.text_emb(ids), self.speech([self._t3.hp.start_speech_token], [0])
        if unconditional:
            embedded = torch.zeros_like(embedded)
        if self._t3.text_pos_emb is not None:
            embedded = embedded + self._t3.text_pos_emb(ids)
        return torch.cat([condition, embedded[0], *([bos] if self._t3.is_gpt else [bos, bos])])

    def speech(self, tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Embed speech tokens at their positions in their rows, ``[tokens, width]``."""
        embedded: torch.Tensor = self._t3.speech_emb(torch.tensor(tokens, device=self._device))
        if self._t3.speech_pos_emb is not None:
            embedded = embedded + self._t3.speech_pos_emb.emb(torch.tensor(positions, device=self._device))
        return embedded
