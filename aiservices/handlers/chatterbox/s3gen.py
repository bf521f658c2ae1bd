"""From speech tokens to sound: S3Gen's flow for several rows at once, its vocoder row by row.

Imports torch: import it inside ``load``. Rows of different voices and lengths are padded on the right. Of the flow's
convolutions only the encoder's first looks ahead, three tokens, where the library has zeros after the end, so the
padding is zeroed there once more. All the rest the library masks by itself. The noise of a row comes from its own
generator in the library's order, so the sound of a seed is the library's. Source: chatterbox-tts 0.1.7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from aiservices.handlers.torch_runtime import one_core_threads

if TYPE_CHECKING:
    from aiservices.handlers.audio import Samples

SAMPLE_RATE = 24_000
"""Samples a second of what comes out."""

FRAMES_PER_TOKEN = 2
"""Frames of the spectrogram for a token of 40 ms."""

_CHANNELS = 80
_GPU_TOKENS = 16_000
_CPU_TOKENS = 512  # what a core holds in its cache: a pass of 2000 takes a seventh longer a row


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


class S3GenEngine:
    """One S3Gen in float32; bfloat16 corrupts it without a word.

    A GPU makes one large pass after the other. A CPU makes small passes, each on one core: kernels that share several
    cores wait for one another, and a large pass does not fit into a cache.

    Args:
        s3gen: the library's module, in evaluation mode.
        device: where it is.
        steps: of the flow.
        max_tokens: most tokens of one pass, padding and the voices' clips included; None for what suits the device.
    """

    def __init__(self, s3gen: Any, device: str, *, steps: int = 10, max_tokens: int | None = None) -> None:
        self._s3gen, self._flow, self._device = s3gen, s3gen.flow, device
        self._steps = steps
        self._max_tokens = max_tokens or (_CPU_TOKENS if device == "cpu" else _GPU_TOKENS)
        cores = torch.get_num_threads() if device == "cpu" else 1
        self._cores = one_core_threads(cores, "speech-sound") if cores > 1 else None

    def close(self) -> None:
        """End the threads."""
        if self._cores is not None:
            self._cores.shutdown()

    def render(self, requests: Sequence[SoundRequest]) -> list[Samples]:
        """Make sound of all requests, those of like length together.

        Returns:
            Mono samples at 24 kHz, ``(frames,)`` each, in the order of the requests.
        """
        order = sorted(range(len(requests)), key=lambda index: requests[index].width)
        groups = self._groups(order, requests)
        passes = [[requests[index] for index in group] for group in groups]
        mapped = map if self._cores is None or len(passes) == 1 else self._cores.map
        sounds: dict[int, Samples] = {}
        for group, made in zip(groups, mapped(self._pass, passes), strict=True):
            sounds.update(zip(group, made, strict=True))
        return [sounds[index] for index in range(len(requests))]

    def _pass(self, requests: Sequence[SoundRequest]) -> list[Samples]:
        spectrograms = self._spectrograms(requests)
        return [self._vocode(one, request.generator) for one, request in zip(spectrograms, requests, strict=True)]

    def _groups(self, order: Sequence[int], requests: Sequence[SoundRequest]) -> list[list[int]]:
        """Cut into passes, from short to long, within ``max_tokens``."""
        groups: list[list[int]] = []
        for index in order:
            if groups and (len(groups[-1]) + 1) * requests[index].width <= self._max_tokens:
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups

    @torch.inference_mode()
    def _spectrograms(self, requests: Sequence[SoundRequest]) -> list[torch.Tensor]:
        """Run the flow once for all requests.

        Returns:
            What is to be heard of each, the voice's own clip cut off, ``[1, 80, frames]``.
        """
        lengths = torch.tensor([request.width for request in requests], device=self._device)
        mu = self._encoded(requests, lengths)
        frames = FRAMES_PER_TOKEN * lengths
        mask = (torch.arange(mu.shape[2], device=self._device) < frames[:, None])[:, None].to(mu.dtype)
        prompts = [request.voice.frames.to(mu) for request in requests]
        speakers = torch.cat([request.voice.embedding.to(mu) for request in requests])
        out = self._solved(
            self._noise(requests, mu.shape[2]),
            mu=mu,
            mask=mask,
            spks=self._flow.spk_embed_affine_layer(normalize(speakers, dim=1)),
            cond=_padded(prompts, mu.shape[2]).transpose(1, 2).contiguous(),
        )
        ends = frames.tolist()
        return [out[row : row + 1, :, len(prompts[row]) : ends[row]] for row in range(len(requests))]

    @torch.inference_mode()
    def _vocode(self, spectrogram: torch.Tensor, generator: torch.Generator) -> Samples:
        """Make sound of one spectrogram, ``[1, 80, frames]``."""
        vocoder = self._s3gen.mel2wav
        pitch = vocoder.f0_predictor(spectrogram)
        pitch = vocoder.f0_upsamp(pitch[:, None])
        wave = vocoder.decode(x=spectrogram, s=_excitation(vocoder.m_source, pitch, generator))
        fade = self._s3gen.trim_fade  # against what spills over from the clip
        wave[:, : len(fade)] *= fade[: wave.shape[1]]
        samples: Samples = wave[0].float().cpu().numpy()
        return samples

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
            if self._s3gen.meanflow:  # the library draws it before the rest and puts it over the spoken part
                spoken = self._drawn(FRAMES_PER_TOKEN * len(request.tokens), request.generator)
            noise = self._drawn(FRAMES_PER_TOKEN * request.width, request.generator)
            if spoken is not None:
                noise[:, noise.shape[1] - spoken.shape[1] :] = spoken
            rows.append(noise.T)
        return _padded(rows, width).transpose(1, 2).contiguous()

    def _drawn(self, frames: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(1, _CHANNELS, frames, generator=generator, device=self._device)[0]

    def _solved(self, noise: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
        """Follow the flow from noise to spectrogram."""
        decoder = self._flow.decoder
        times = torch.linspace(0, 1, self._steps + 1, device=self._device)
        if not self._s3gen.meanflow:
            if decoder.t_scheduler == "cosine":
                times = 1 - torch.cos(times * 0.5 * torch.pi)
            solved: torch.Tensor = decoder.solve_euler(noise, t_span=times, **given)
            return solved
        for now, then in pairwise(times):
            slope = decoder.estimator.forward(noise, t=now[None], r=then[None], **given)
            noise = noise + (then - now) * slope
        return noise


def _padded(rows: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """Put ``[length, channels]`` rows into ``[rows, width, channels]``, zeros after their ends."""
    out = rows[0].new_zeros(len(rows), width, rows[0].shape[1])
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out


def _excitation(source: Any, pitch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Make the vocoder's source of a pitch in Hz, ``[1, 1, samples]``, with a generator of its own.

    Source: ``SineGen`` and ``SourceModuleHnNSF`` of the library, which draw from torch's global generator.
    """
    sines = source.l_sin_gen
    harmonics = sines.harmonic_num + 1
    numbers = [pitch * number / sines.sampling_rate for number in range(1, harmonics + 1)]
    angle = 2 * math.pi * (torch.cumsum(torch.cat(numbers, dim=1), dim=-1) % 1)
    phase = torch.rand(1, harmonics, 1, generator=generator, device=pitch.device) * (2 * math.pi) - math.pi
    phase[:, 0] = 0
    voiced = sines._f02uv(pitch)
    loudness = voiced * sines.noise_std + (1 - voiced) * sines.sine_amp / 3
    noise = loudness * torch.randn(angle.shape, generator=generator, device=pitch.device)
    waves = sines.sine_amp * torch.sin(angle + phase) * voiced + noise
    merged: torch.Tensor = source.l_tanh(source.l_linear(waves.transpose(1, 2))).transpose(1, 2)
    return merged
