from __future__ import annotations

import os
import subprocess
import sys

import pytest

from aiservices.cli.allocator import MAX_ARENAS

COUNT = """
import ctypes, os, threading
from aiservices.cli.allocator import limit_arenas

limit_arenas(os.environ)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(8)

def work():
    together.wait()
    libc.malloc(100)
    together.wait()

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""),
    reason="glibc alone has arenas",
)


def arenas(**environ: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNT], env={**os.environ, **environ}, capture_output=True, text=True, check=True
    )
    return done.stdout.count("<heap nr=")


def test_threads_share_arenas() -> None:
    assert arenas() <= MAX_ARENAS


def test_what_the_environment_says_stays() -> None:
    assert arenas(MALLOC_ARENA_MAX="6") > MAX_ARENAS
