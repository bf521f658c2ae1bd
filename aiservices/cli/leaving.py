"""The last thing that a command does: end the process, also where a thread would not let it."""

from __future__ import annotations

import logging
import os
import threading
import time

from aiservices.logs import get_logger

PATIENCE_S = 2.0
"""How long threads of a pool get to end: the interpreter itself would wait for them without end."""

log = get_logger(__name__)


def leave_if_held(code: int) -> int:
    """Return the exit code, unless threads are at work that never end: then end the process with it here and now."""
    until = time.monotonic() + PATIENCE_S
    threads = [each for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
    for each in threads:
        each.join(max(0.0, until - time.monotonic()))
    if held := [each.name for each in threads if each.is_alive()]:
        log.warning("process.left_at_once", threads=held)
        leave(code)
    return code


def leave(code: int) -> None:
    """End the process at once; what is still to be logged is written."""
    logging.shutdown()
    os._exit(code)
