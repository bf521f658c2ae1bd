"""The optimiser and the learning-rate schedule that both models are trained with."""

import math
import time
from collections.abc import Iterable

import torch
from torch import nn

LENGTH_STEP = 16
"""Rows are padded to a multiple of this many tokens: products of ever new shapes cost time and memory on a CPU."""


class Optimizer:
    """Muon for the matrices inside the blocks, AdamW for all else; warm-up, then a cosine down to zero.

    Muon (https://kellerjordan.github.io/posts/muon) needs about half the steps of AdamW alone on models this
    small; embeddings, heads, norms and biases are not matrices in its sense.

    Args:
        modules: What is trained.
        steps: Length of the schedule.
        lr: Peak learning rate of AdamW.
        muon_lr: Peak learning rate of Muon, scaled to updates of the size of AdamW's.
        warmup: Steps up to the peak.
    """

    def __init__(
        self, modules: Iterable[nn.Module], *, steps: int, lr: float, muon_lr: float, warmup: int = 100
    ) -> None:
        self._steps, self._warmup, self._step = steps, warmup, 0
        named = dict(pair for module in modules for pair in _by_kind(module))
        self.parameters = list(named)
        matrices = [parameter for parameter, is_matrix in named.items() if is_matrix]
        others = [parameter for parameter, is_matrix in named.items() if not is_matrix]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self._schedules = [torch.optim.lr_scheduler.LambdaLR(o, self._share) for o in self._optimizers]

    def step(self, loss: torch.Tensor) -> None:
        """Take one step down the loss, the gradient clipped to a norm of 1."""
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        self._step += 1

    def _share(self, step: int) -> float:
        if step < self._warmup:
            return (step + 1) / self._warmup
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - self._warmup) / max(1, self._steps - self._warmup)))


class Progress:
    """Print how far a training run is: a line every so many steps with the mean of each named number.

    Args:
        name: First word of each line.
        steps: Steps of the whole run.
        every: Steps between two lines.
    """

    def __init__(self, name: str, steps: int, every: int) -> None:
        self._name, self._steps, self._every = name, steps, every
        self._wall_s, self._cpu_s = time.monotonic(), time.process_time()
        self._sums: dict[str, float] = {}

    def report(self, step: int, **numbers: torch.Tensor) -> None:
        """Add the numbers of a step (counted from 0) and print when a line is due."""
        for key, number in numbers.items():
            self._sums[key] = self._sums.get(key, 0.0) + float(number.detach())
        if (step + 1) % self._every == 0 or step + 1 == self._steps:
            count = (step % self._every) + 1
            means = " ".join(f"{key} {total / count:.4f}" for key, total in self._sums.items())
            wall_s, cpu_s = time.monotonic() - self._wall_s, time.process_time() - self._cpu_s
            print(f"{self._name} {step + 1}/{self._steps}: {means} ({wall_s:.0f} s, CPU {cpu_s:.0f} s)", flush=True)
            self._sums.clear()


def _by_kind(module: nn.Module) -> Iterable[tuple[nn.Parameter, bool]]:
    """Give each parameter and whether it is a matrix for Muon."""
    for name, parameter in module.named_parameters():
        outside = "embed" in name or "lm_head" in name or "heads" in name
        yield parameter, parameter.ndim == 2 and not outside
