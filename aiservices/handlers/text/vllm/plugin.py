"""What runs in the engine's process: vLLM loads it there as a plugin, by the entry point in ``setup.cfg``.

It makes the process end with its parent and not by a Ctrl-C that is the parent's to answer, and it teaches vLLM's
grammars to end a JSON object in time (:mod:`aiservices.handlers.text.vllm.grammar`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection

OWNER_VARIABLE = "AISERVICES_VLLM_OWNER"
"""Environment variable that says which process started the engine; without it, a vLLM is none of ours."""

STOP_SIGNAL = signal.SIGUSR1
"""What tells the process to end."""

BUDGET_KEY = "x-aiservices-max-tokens"
"""Key in a JSON schema that says how many tokens an answer may have."""


def register() -> None:
    """Prepare a process of vLLM; one that this package did not start is left as it is."""
    parent = multiprocessing.parent_process()
    if parent is None or os.environ.get(OWNER_VARIABLE) != str(parent.pid):
        return
    signal.signal(STOP_SIGNAL, signal.getsignal(signal.SIGTERM))
    for name in (signal.SIGINT, signal.SIGTERM):  # a terminal and a supervisor send them to all; the parent decides
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent.sentinel,), name="parent-watch", daemon=True).start()

    from vllm.v1 import structured_output

    from aiservices.handlers.text.vllm.grammar import BudgetBackend

    structured_output.GuidanceBackend = BudgetBackend


def _end_with(parent: int) -> None:
    """Leave nothing behind on the device when the parent was killed."""
    connection.wait([parent])
    os._exit(1)
