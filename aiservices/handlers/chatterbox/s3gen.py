"""From speech tokens to sound: S3Gen for several rows at once. Imports torch: import it inside ``load``.

The sound of a seed is the library's: :mod:`.flow` and :mod:`.vocoder` say how. All of it is in float32: bfloat16
corrupts the token ids without a word, and for the flow's network alone nobody has measured yet that it sounds the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from aiservices.handlers.chatterbox.faults import raise_if_of_device
from aiservices.handlers.chatterbox.flow import Flow, SoundRequest
from aiservices.handlers.chatterbox.vocoder import Vocoder
from aiservices.handlers.torch_runtime import one_core_threads

if TYPE_CHECKING:
    from aiservices.handlers.audio import Samples

SAMPLE_RATE = 24_000
"""Samples a second of what comes out."""

_GPU_TOKENS = 16_000
_CPU_TOKENS = 512  # what a core holds in its cache: a pass of 2000 takes a seventh longer a row


class S3GenEngine:
    """One S3Gen. Made on the model's thread; :meth:`render` runs on one thread at a time.

    A GPU makes one large pass after the other, on a stream of its own, so that it can do T3's steps in between. A CPU
    makes small passes, each on one core: kernels that share several cores wait for one another, and a large pass does
    not fit into a cache.

    Args:
        s3gen: the library's module, in evaluation mode.
        device: where it is.
        steps: of the flow.
        max_tokens: most tokens of one pass, padding and the voices' clips included; None for what suits the device.
    """

    def __init__(self, s3gen: Any, device: str, *, steps: int = 10, max_tokens: int | None = None) -> None:
        self._device = device
        self._max_tokens = max_tokens or (_CPU_TOKENS if device == "cpu" else _GPU_TOKENS)
        self._flow = Flow(s3gen, device, steps)
        self._vocoder = Vocoder(s3gen, together=device != "cpu")
        cores = torch.get_num_threads() if device == "cpu" else 1
        self._cores = one_core_threads(cores, "speech-sound") if cores > 1 else None
        self._stream = _stream(device) if device.startswith("cuda") else None

    def close(self) -> None:
        """End the threads."""
        if self._cores is not None:
            self._cores.shutdown()

    def render(self, requests: Sequence[SoundRequest], *, alone: bool = True) -> list[Samples | Exception]:
        """Make sound of all requests, those of like length together.

        Args:
            requests: at least one.
            alone: whether nothing else computes, so that a single pass may have every core.

        Returns:
            Mono samples at 24 kHz, ``(frames,)`` each, in the order of the requests; or why there are none.
        """
        order = sorted(range(len(requests)), key=lambda index: requests[index].width)
        groups = self._groups(order, requests)
        passes = [[requests[index] for index in group] for group in groups]
        mapped = map if self._cores is None or (alone and len(passes) == 1) else self._cores.map
        sounds: dict[int, Samples | Exception] = {}
        with ExitStack() as stack:
            if self._stream is not None:
                stack.enter_context(torch.cuda.device(self._device))
                stack.enter_context(torch.cuda.stream(self._stream))
            for group, made in zip(groups, mapped(self._pass, passes), strict=True):
                sounds.update(zip(group, made, strict=True))
        return [sounds[index] for index in range(len(requests))]

    def _pass(self, requests: Sequence[SoundRequest]) -> list[Samples | Exception]:
        """Make one pass; if that fails by the fault of one row, a pass for each, with the noise that it would have."""
        states = [request.generator.get_state() for request in requests]
        try:
            spectrograms = self._flow.spectrograms(requests)
            return list(self._vocoder.sounds(spectrograms, [request.generator for request in requests]))
        except Exception as error:
            raise_if_of_device(error)
            if len(requests) == 1:
                return [error]
        for request, state in zip(requests, states, strict=True):
            request.generator.set_state(state)
        return [made for request in requests for made in self._pass([request])]

    def _groups(self, order: Sequence[int], requests: Sequence[SoundRequest]) -> list[list[int]]:
        """Cut into passes, from short to long, within ``max_tokens``."""
        groups: list[list[int]] = []
        for index in order:
            if groups and (len(groups[-1]) + 1) * requests[index].width <= self._max_tokens:
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups


def _stream(device: str) -> torch.cuda.Stream:
    """Take a stream, once the weights are where they belong."""
    torch.cuda.synchronize(device)
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
