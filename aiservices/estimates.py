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
        activations_gib: what one step needs beside, work space of the device's libraries included.
        reserved_share: of the whole device, taken whether it is needed or not; 0 takes what is needed.
    """

    weights_gib: float
    cache_gib: float = 0.0
    activations_gib: float = 0.0
    reserved_share: float = 0.0

    @property
    def total_gib(self) -> float:
        """All of it."""
        return self.weights_gib + self.cache_gib + self.activations_gib


@runtime_checkable
class EstimatesMemory(Protocol):
    """A handler that can say what its model will take, before it is loaded."""

    def estimate_memory(
        self, model_dir: Path | None, model: str, device: str, options: Mapping[str, Any], max_batch_size: int
    ) -> MemoryNeed | None:
        """Estimate it from the model's files, or by its name. Imports nothing large; on any thread.

        Args:
            model_dir: as for ``load``; None while the model is not here.
            model: the setting.
            device: as for ``load``.
            options: as for ``load``.
            max_batch_size: rows at once.

        Returns:
            None if nothing is known of the model while it is not here.

        Raises:
            ServiceError: the folder holds no such model.
        """
