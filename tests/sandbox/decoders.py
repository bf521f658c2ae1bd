"""What children are told to run in these tests."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from aiservices.errors import InvalidInput

Answer = tuple[dict[str, Any], bytes]


def reverse(data: bytes, *, field: str) -> Answer:
    return {"field": field, "pid": os.getpid()}, data[::-1]


def refuse(data: bytes, *, field: str) -> Answer:
    raise InvalidInput(field, "is not nice")


def fail(data: bytes, *, field: str) -> Answer:
    raise KeyError("odd")


def sleep(data: bytes, *, field: str) -> Answer:
    time.sleep(60)
    return {}, b""


def crash(data: bytes, *, field: str) -> Answer:
    ctypes.string_at(0)
    return {}, b""


def be_killed(data: bytes, *, field: str) -> Answer:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}, b""


def swell(data: bytes, *, field: str) -> Answer:
    return {}, bytes(4 << 30)


def warn(data: bytes, *, field: str) -> Answer:
    warnings.warn("look", stacklevel=1)
    os.write(2, b"noise")
    return {}, b""


def talk_nonsense(data: bytes, *, field: str) -> Answer:
    os.write(0, b"\xff" * 64)
    time.sleep(60)
    return {}, b""


def look_around(data: bytes, *, field: str) -> Answer:
    seen = {
        "environment": sorted(os.environ),
        "files": resource.getrlimit(resource.RLIMIT_FSIZE)[0],
        "cores": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "memory": resource.getrlimit(resource.RLIMIT_AS)[0],
        "descriptors": sorted(int(path.name) for path in Path("/proc/self/fd").iterdir()),
        "torch": "torch" in sys.modules,
    }
    return seen, b""
