"""What runs in a child: take a message, call the function that it names, send back what it gives.

Started as ``python -m aiservices.sandbox.child``, its socket in the place of standard input. Imports little, so that an
idle child is small; never torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import resource
import signal
import socket
import sys
import traceback
import warnings
from typing import Any

from aiservices.errors import InvalidInput
from aiservices.sandbox import wire

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
_OPEN_FILES = 32
"""Enough to import what is needed late, as Pillow's formats; none is handed down."""


def confine(memory_bytes: int) -> None:
    """Bound this process: memory, files, no written file, no core dump, no new rights, no life after its parent."""
    for limit, bound in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_AS, memory_bytes),
    ):
        with contextlib.suppress(OSError, ValueError):  # a limit that is lower already, or that the system lacks
            resource.setrlimit(limit, (bound, bound))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal goes to all; the parent decides
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def serve(connection: socket.socket, memory_bytes: int) -> None:
    """Answer messages until the parent is gone."""
    warnings.simplefilter("ignore")  # the log is the parent's, and JSON
    while True:
        try:
            header, data = wire.receive(connection, max_bytes=memory_bytes)
        except wire.Broken:
            return
        answer, body = _answer(header, bytes(data))
        del data
        wire.send(connection, answer, body)


def _answer(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    _bound_cpu(header["cpu_s"])
    try:
        function: Any = importlib.import_module(header["module"])
        for name in header["function"].split("."):
            function = getattr(function, name)
        result, body = function(data, **header["arguments"])
    except InvalidInput as error:
        return {"invalid": error.reason, "field": error.field}, b""
    except MemoryError:
        return {"memory": True}, b""
    except Exception:
        return {"error": traceback.format_exc()[-wire.MAX_HEADER_BYTES // 8 :]}, b""
    return {"result": result}, body


def _bound_cpu(seconds: float) -> None:
    """Let the system end this process after so much more work, even if the parent cannot."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def main() -> None:
    """Begin."""
    memory_bytes = int(sys.argv[1])
    confine(memory_bytes)
    serve(socket.socket(fileno=0), memory_bytes)


if __name__ == "__main__":
    main()
