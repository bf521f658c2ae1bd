"""S3Gen's vocoder: from spectrograms to sound, row by row or together. Imports torch: import it inside ``load``.

Its convolutions look both ways, and at the end of a row the library has zeros. So rows that go together are zeroed
after their ends before each convolution; only what turns sound into frequencies and back, which mirrors the ends, is
done row by row. Source: ``HiFTGenerator`` of chatterbox-tts 0.1.7 (HiFTNet, https://arxiv.org/abs/2309.09493).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import leaky_relu
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from aiservices.handlers.audio import Samples

_MAX_FRAMES = 4_000
"""Of rows that go together, padding included: 80 s of sound, some 0.8 GB at the widest layer of a full-sized model."""


class Vocoder:
    """The vocoder of one S3Gen, in float32.

    Args:
        s3gen: the library's module, in evaluation mode.
        together: whether several rows go in one pass, as suits a GPU; a CPU is faster with one at a time.
    """

    def __init__(self, s3gen: Any, *, together: bool) -> None:
        self._net, self._fade, self._together = s3gen.mel2wav, s3gen.trim_fade, together
        with torch.inference_mode():
            _settle_weights(self._net)

    @torch.inference_mode()
    def sounds(self, spectrograms: Sequence[torch.Tensor], generators: Sequence[torch.Generator]) -> list[Samples]:
        """Make sound of spectrograms, ``[1, 80, frames]`` each, every one with noise of its own generator."""
        rows = list(zip(spectrograms, generators, strict=True))
        if not self._together:
            return [self._finished(self._alone(spectrogram, generator)) for spectrogram, generator in rows]
        longest = max(spectrogram.shape[2] for spectrogram in spectrograms)
        count = max(1, _MAX_FRAMES // longest)
        groups = [rows[begin : begin + count] for begin in range(0, len(rows), count)]
        return [self._finished(wave) for group in groups for wave in self._grouped(group)]

    def _finished(self, wave: torch.Tensor) -> Samples:
        fade = self._fade  # against what spills over from the clip
        wave[:, : len(fade)] *= fade[: wave.shape[1]]
        samples: Samples = wave[0].float().cpu().numpy()
        return samples

    def _alone(self, spectrogram: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        net = self._net
        pitch = net.f0_upsamp(net.f0_predictor(spectrogram)[:, None])
        wave: torch.Tensor = net.decode(x=spectrogram, s=_excitation(net.m_source, pitch, generator))
        return wave

    def _grouped(self, rows: Sequence[tuple[torch.Tensor, torch.Generator]]) -> list[torch.Tensor]:
        net = self._net
        lengths = [spectrogram.shape[2] for spectrogram, _ in rows]
        x = _together([spectrogram[0] for spectrogram, _ in rows])
        pitches = self._pitches(x, lengths)
        sources = []
        for row, (_, generator) in enumerate(rows):
            pitch = net.f0_upsamp(pitches[row : row + 1, None, : lengths[row]])
            real, imaginary = net._stft(_excitation(net.m_source, pitch, generator).squeeze(1))
            sources.append(torch.cat([real, imaginary], dim=1)[0])
        out = self._convolved(x, _together(sources), lengths)
        bins = net.istft_params["n_fft"] // 2 + 1
        magnitude, phase = torch.exp(out[:, :bins]), torch.sin(out[:, bins:])
        waves = []
        for row, source in enumerate(sources):
            place = (slice(row, row + 1), slice(None), slice(source.shape[1]))
            waves.append(torch.clamp(net._istft(magnitude[place], phase[place]), -net.audio_limit, net.audio_limit))
        return waves

    def _pitches(self, x: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Tell the pitch in Hz, ``[rows, frames]``; padding means nothing."""
        predictor, mask = self._net.f0_predictor, _mask(lengths, x)
        for layer in predictor.condnet:
            x = layer(x) * mask
        pitches: torch.Tensor = predictor.classifier(x.transpose(1, 2)).squeeze(-1).abs()
        return pitches

    def _convolved(self, x: torch.Tensor, source: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Run the upsampling layers: ``HiFTGenerator.decode`` between its two transforms, ``[rows, bins, frames]``."""
        net = self._net
        x = net.conv_pre(x) * _mask(lengths, x)
        for level in range(net.num_upsamples):
            x = net.ups[level](leaky_relu(x, net.lrelu_slope))
            lengths = [length * int(net.ups[level].stride[0]) for length in lengths]
            if level == net.num_upsamples - 1:
                x, lengths = net.reflection_pad(x), [length + 1 for length in lengths]
            mask = _mask(lengths, x)
            x = x * mask + _residual(net.source_resblocks[level], net.source_downs[level](source) * mask, mask)
            kernels = net.resblocks[level * net.num_kernels : (level + 1) * net.num_kernels]
            mixed = _residual(kernels[0], x, mask)
            for block in kernels[1:]:
                mixed = mixed + _residual(block, x, mask)
            x = mixed / net.num_kernels
        out: torch.Tensor = net.conv_post(leaky_relu(x))
        return out


def _residual(block: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run a ``ResBlock``; its activations leave zeros alone, its convolutions do not."""
    layers = zip(block.activations1, block.convs1, block.activations2, block.convs2, strict=True)
    for first, dilated, second, plain in layers:
        x = x + plain(second(dilated(first(x))) * mask) * mask
    return x


def _mask(lengths: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Which columns there are, ``[rows, 1, columns]``."""
    ends = torch.tensor(lengths, device=like.device)
    return (torch.arange(like.shape[2], device=like.device) < ends[:, None])[:, None].to(like.dtype)


def _together(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Put ``[channels, columns]`` rows into ``[rows, channels, columns]``, zeros after their ends."""
    return pad_sequence([row.T for row in rows], batch_first=True).transpose(1, 2).contiguous()


def _settle_weights(net: Any) -> None:
    """Calculate the weights that the library keeps as direction and length once, not in every pass."""
    for module in list(net.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


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
