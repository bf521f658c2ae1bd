"""S3Gen's flow: from speech tokens to spectrograms, several rows at once. Imports torch: import it inside ``load``.

Rows of different voices and lengths are padded on the right. Of the flow's convolutions only the encoder's first looks
ahead, three tokens, where the library has zeros after the end, so the padding is zeroed there once more. All the rest
the library masks by itself. The noise of a row comes from its own generator in the library's order.

The modules are the library's; the loops over them are ours, because the library's make each mask anew in every block
and look at it on the host: 140 waits for the device in a render. Source: ``UpsampleConformerEncoder``,
``ConditionalDecoder.forward`` and ``ConditionalCFM.solve_euler`` of chatterbox-tts 0.1.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import attrs
import torch
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

FRAMES_PER_TOKEN = 2
"""Frames of the spectrogram for a token of 40 ms."""

_CHANNELS = 80
_HIDDEN = -1.0e10  # the library's bias of what attention must not see


@attrs.frozen(eq=False)
class GenVoice:
    """What S3Gen has to know of a voice.

    Args:
        tokens: speech tokens of the clip, ``[tokens]``.
        frames: its spectrogram, ``[frames, 80]``.
        embedding: of the speaker, ``[1, 192]``.
    """

    tokens: torch.Tensor
    frames: torch.Tensor
    embedding: torch.Tensor


@attrs.frozen(eq=False)
class SoundRequest:
    """One piece to make audible.

    Args:
        tokens: speech tokens, all below 6561, at least one.
        voice: who speaks.
        generator: where the noise comes from.
    """

    tokens: Sequence[int]
    voice: GenVoice
    generator: torch.Generator

    @property
    def width(self) -> int:
        """Tokens with those of the voice's clip."""
        return len(self.tokens) + len(self.voice.tokens)


class Flow:
    """The flow of one S3Gen, in float32.

    Args:
        s3gen: the library's module, in evaluation mode.
        device: where it is.
        steps: from noise to spectrogram.
    """

    def __init__(self, s3gen: Any, device: str, steps: int) -> None:
        self._flow, self._meanflow, self._device, self._steps = s3gen.flow, bool(s3gen.meanflow), device, steps

    @torch.inference_mode()
    def spectrograms(self, requests: Sequence[SoundRequest]) -> list[torch.Tensor]:
        """Run the flow once for all requests.

        Returns:
            What is to be heard of each, the voice's own clip cut off, ``[1, 80, frames]``.
        """
        widths = [request.width for request in requests]
        lengths = torch.tensor(widths, device=self._device)
        mu = self._encoded(requests, lengths)
        mask = (torch.arange(mu.shape[2], device=self._device) < FRAMES_PER_TOKEN * lengths[:, None])[:, None]
        prompts = [request.voice.frames.to(mu) for request in requests]
        speakers = torch.cat([request.voice.embedding.to(mu) for request in requests])
        speakers = self._flow.spk_embed_affine_layer(normalize(speakers, dim=1))
        given = [
            mu,
            speakers[:, :, None].expand(-1, -1, mu.shape[2]),
            _padded(prompts, mu.shape[2]).transpose(1, 2),
        ]
        out = self._solved(self._noise(requests, mu.shape[2]), torch.cat(given, dim=1), mask)
        return [
            out[row : row + 1, :, len(prompts[row]) : FRAMES_PER_TOKEN * widths[row]] for row in range(len(requests))
        ]

    def _encoded(self, requests: Sequence[SoundRequest], lengths: torch.Tensor) -> torch.Tensor:
        """Encode clip and tokens to the flow's mean, ``[rows, 80, frames]``."""
        flow, encoder = self._flow, self._flow.encoder
        ids = [
            torch.cat([request.voice.tokens.to(self._device), torch.tensor(request.tokens, device=self._device)])
            for request in requests
        ]
        tokens = pad_sequence(ids, batch_first=True)
        mask = (torch.arange(tokens.shape[1], device=self._device) < lengths[:, None])[:, None]
        hidden = flow.input_embedding(tokens.long()) * mask.transpose(1, 2)
        hidden, positions, mask = encoder.embed(hidden, mask)
        hidden = encoder.pre_lookahead_layer(hidden * mask.transpose(1, 2))
        hidden = encoder.forward_layers(hidden, mask, positions, mask)
        hidden, _ = encoder.up_layer(hidden.transpose(1, 2).contiguous(), lengths)
        mask = mask.repeat_interleave(FRAMES_PER_TOKEN, dim=2)
        hidden, positions, mask = encoder.up_embed(hidden.transpose(1, 2).contiguous(), mask)
        hidden = encoder.after_norm(encoder.forward_up_layers(hidden, mask, positions, mask))
        encoded: torch.Tensor = flow.encoder_proj(hidden).transpose(1, 2).contiguous()
        return encoded

    def _noise(self, requests: Sequence[SoundRequest], width: int) -> torch.Tensor:
        """Draw each row's noise from its generator, ``[rows, 80, frames]``."""
        rows = []
        for request in requests:
            spoken = None
            if self._meanflow:  # the library draws it before the rest and puts it over the spoken part
                spoken = self._drawn(FRAMES_PER_TOKEN * len(request.tokens), request.generator)
            noise = self._drawn(FRAMES_PER_TOKEN * request.width, request.generator)
            if spoken is not None:
                noise[:, noise.shape[1] - spoken.shape[1] :] = spoken
            rows.append(noise.T)
        return _padded(rows, width).transpose(1, 2).contiguous()

    def _drawn(self, frames: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(1, _CHANNELS, frames, generator=generator, device=self._device)[0]

    def _solved(self, noise: torch.Tensor, given: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Follow the flow from noise to spectrogram.

        Args:
            noise: ``[rows, 80, frames]``.
            given: mean, speaker and clip, ``[rows, 240, frames]``.
            mask: which frames there are, ``[rows, 1, frames]``.
        """
        decoder = self._flow.decoder
        times = torch.linspace(0, 1, self._steps + 1, device=self._device)
        if self._meanflow:
            estimator = Estimator(decoder.estimator, mask)
            for now, then in pairwise(times):
                noise = noise + (then - now) * estimator.slope(noise, given, now[None], then[None])
            return noise
        if decoder.t_scheduler == "cosine":
            times = 1 - torch.cos(times * 0.5 * torch.pi)
        rows, rate = len(noise), decoder.inference_cfg_rate
        # Below the rows are the same without what is given: guidance compares the two.
        estimator, given = (
            Estimator(decoder.estimator, mask.repeat(2, 1, 1)),
            torch.cat([given, torch.zeros_like(given)]),
        )
        for now, then in pairwise(times):
            slope = estimator.slope(noise.repeat(2, 1, 1), given, now.expand(2 * rows))
            noise = noise + (then - now) * ((1.0 + rate) * slope[:rows] - rate * slope[rows:])
        return noise


class Estimator:
    """The flow's network over rows of given lengths.

    Args:
        network: the library's ``ConditionalDecoder``.
        mask: which frames there are, ``[rows, 1, frames]``.
    """

    def __init__(self, network: Any, mask: torch.Tensor) -> None:
        self._network = network
        self._levels: list[tuple[torch.Tensor, torch.Tensor]] = []
        for _ in network.down_blocks:
            self._levels.append((mask.float(), (1.0 - mask.float()) * _HIDDEN))
            mask = mask[:, :, ::2]

    def slope(
        self, noise: torch.Tensor, given: torch.Tensor, now: torch.Tensor, then: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Tell where the flow goes.

        Args:
            noise: where it is, ``[rows, 80, frames]``.
            given: what it is to become, ``[rows, 240, frames]``.
            now: time, ``[rows]`` or ``[1]``.
            then: where the step ends, for a network that was taught whole steps.
        """
        network, time = self._network, self._embedded(now, then)
        x, skips = torch.cat([noise, given], dim=1), []
        for (mask, bias), (resnet, blocks, downsample) in zip(self._levels, network.down_blocks, strict=True):
            x = _attended(resnet(x, mask, time), blocks, bias, time)
            skips.append(x)
            x = downsample(x * mask)
        mask, bias = self._levels[-1]
        for resnet, blocks in network.mid_blocks:
            x = _attended(resnet(x, mask, time), blocks, bias, time)
        for (mask, bias), (resnet, blocks, upsample) in zip(reversed(self._levels), network.up_blocks, strict=True):
            skip = skips.pop()
            x = torch.cat([x[:, :, : skip.shape[-1]], skip], dim=1)
            x = upsample(_attended(resnet(x, mask, time), blocks, bias, time) * mask)
        out: torch.Tensor = network.final_proj(network.final_block(x, mask) * mask) * mask
        return out

    def _embedded(self, now: torch.Tensor, then: torch.Tensor | None) -> torch.Tensor:
        network = self._network
        time: torch.Tensor = network.time_mlp(network.time_embeddings(now).to(now.dtype))
        if then is None:
            return time
        end = network.time_mlp(network.time_embeddings(then).to(now.dtype))
        mixed: torch.Tensor = network.time_embed_mixer(torch.cat([time, end], dim=1))
        return mixed


def _attended(x: torch.Tensor, blocks: Any, bias: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Run transformer blocks over ``[rows, channels, frames]``."""
    x = x.transpose(1, 2).contiguous()
    for block in blocks:
        x = block(hidden_states=x, attention_mask=bias, timestep=time)
    return x.transpose(1, 2).contiguous()


def _padded(rows: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """Put ``[length, channels]`` rows into ``[rows, width, channels]``, zeros after their ends."""
    out = rows[0].new_zeros(len(rows), width, rows[0].shape[1])
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out
