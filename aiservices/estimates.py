"""What a handler may say of its model before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import attrs


@attrs.frozen
class MemoryNeed:
    """What a model takes of its device, in GiB, estimated.

    Attributes:
        cache_gib: keys and values of all rows at once.
        activations_gib: what one step needs beside, and the device's own share of a process.
    """

    weights_gib: float
    cache_gib: float = 0.0
    activations_gib: float = 0.0

    @property
    def total_gib(self) -> float:
        """All of it."""
        return self.weights_gib + self.cache_gib + self.activations_gib


@runtime_checkable
class EstimatesMemory(Protocol):
    """A handler that can say what its model will take, before it is loaded."""

    def estimate_memory(
        self, model_dir: Path, device: str, options: Mapping[str, Any], max_batch_size: int
    ) -> MemoryNeed:
        """Estimate it from the model's files. Imports nothing large; on any thread.

        Args:
            model_dir: as for ``load``.
            device: as for ``load``, or ``auto``.
            options: as for ``load``.
            max_batch_size: rows at once.

        Raises:
            ServiceError: the folder holds no such model.
        """
