"""Handlers that a test steers from another process, through named pipes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiservices.handler import Task
from tests.fakes import Counting, TextInput, TextOutput, Upper


class Stepwise(Counting):
    """Takes a step for each byte in the pipe ``turns``, and writes how many rows it has into ``rows``."""

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        # Both ends open for both, so that opening waits for nobody.
        self._turns = os.open(options["turns"], os.O_RDWR)
        self._rows = os.open(options["rows"], os.O_RDWR)

    def step(self) -> list[tuple[Task[TextInput], TextOutput | Exception]]:
        os.write(self._rows, b"%d\n" % len(self.rows))
        os.read(self._turns, 1)
        return super().step()

    def evict(self, tasks: Any) -> None:
        super().evict(tasks)
        os.write(self._rows, b"evicted\n")


class AcceleratorError(RuntimeError):
    """What torch raises when the CUDA context is lost."""


class Breaking(Upper):
    """Loses its device with the text ``break``."""

    def predict(self, tasks: Any) -> list[TextOutput | Exception]:
        if any(task.item.text == "break" for task in tasks):
            raise AcceleratorError("CUDA error: an illegal memory access was encountered")
        return super().predict(tasks)
