"""Capture what a GPU does, to be replayed at once. Imports torch: import it inside ``load``."""

from __future__ import annotations

import logging
from collections.abc import Callable

import attrs
import torch

from aiservices.handlers.torch_runtime import capture_lock

_log = logging.getLogger(__name__)

_WARM_UPS = 2
"""Runs before a capture: the first ones choose kernels and allocate, which must not be part of a graph."""


@attrs.frozen(eq=False)
class Captured:
    """A graph and where it writes its result; the next replay writes there again."""

    graph: torch.cuda.CUDAGraph
    out: torch.Tensor

    def replay(self) -> torch.Tensor:
        """Run it on what its inputs hold now."""
        self.graph.replay()
        return self.out


class Capturer:
    """Captures the graphs of one model. They share memory, so they must run one after the other, on one stream."""

    def __init__(self) -> None:
        self._pool: object | None = None

    def capture(self, run: Callable[[], torch.Tensor]) -> Captured | None:
        """Capture a computation and see that its replay gives what it gives.

        Other threads may use the device meanwhile ("thread_local"; the mode "global" forbids them to allocate), but
        only one captures at a time.

        Args:
            run: reads and writes tensors at addresses that stay, and may be run again and again.

        Returns:
            What to replay; None if that cannot be captured, or its replay gives something else, which is logged.
        """
        with capture_lock:
            try:
                captured, expected = self._captured(run)
            except RuntimeError:
                _log.warning("CUDA graphs are turned off: a step could not be captured", exc_info=True)
                return None
        if not torch.allclose(captured.replay(), expected, rtol=1e-2, atol=1e-2, equal_nan=True):
            _log.warning("CUDA graphs are turned off: a replay differs from what was captured")
            return None
        return captured

    def _captured(self, run: Callable[[], torch.Tensor]) -> tuple[Captured, torch.Tensor]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                expected = run().clone()
        torch.cuda.current_stream().wait_stream(stream)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
            out = run()
        return Captured(graph, out), expected
