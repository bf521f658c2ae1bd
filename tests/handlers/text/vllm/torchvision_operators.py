"""Declare the operators that torchvision describes when it is imported, where its compiled part does not load.

For environments with a CPU build of torch and PyPI's torchvision, whose compiled part links CUDA: Python loads this at
its start, through a ``.pth`` file, and it waits until somebody imports torchvision. Nothing here calls the operators.
"""

from __future__ import annotations

import importlib.abc
import sys
from typing import Any

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    library: Any = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torchvision" and self.library is None:
            import torch

            self.library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            for operator in _OPERATORS:
                self.library.define(operator)


sys.meta_path.insert(0, _BeforeTorchvision())
