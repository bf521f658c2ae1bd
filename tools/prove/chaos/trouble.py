"""A service that gets into the trouble that its input names."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Annotated, Literal

import attrs

from aiservices.handler import BatchHandler, Task, output_file

CRASH_STATUS = 3
HANG_S = 600.0


@attrs.frozen
class TroubleInput:
    """What happens while the job runs, and for how long it runs."""

    token: str
    seconds: float = 0.0
    trouble: Literal["none", "memory", "hang", "thread", "crash"] = "none"


@attrs.frozen
class TroubleOutput:
    """A file, which goes to the bucket."""

    file: Annotated[bytes, output_file("The token, again and again.")]
    media_type: str
    token: str


class Trouble(BatchHandler[TroubleInput, TroubleOutput]):
    """A model on a bad day."""

    def predict(self, tasks: Sequence[Task[TroubleInput]]) -> list[TroubleOutput | Exception]:
        """Get into trouble if one of the jobs says so."""
        troubles = {task.item.trouble for task in tasks}
        time.sleep(max(task.item.seconds for task in tasks))
        if "crash" in troubles:
            os._exit(CRASH_STATUS)
        if "hang" in troubles:
            threading.Event().wait(HANG_S)
        if "thread" in troubles:
            raise SystemExit("the model's thread is told to end")
        if "memory" in troubles:
            raise MemoryError("no memory left")
        return [TroubleOutput(task.item.token.encode() * 200, "text/plain", task.item.token) for task in tasks]
