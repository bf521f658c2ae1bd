"""Keeps the memory of the C library together over days of jobs."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

MAX_ARENAS = 2
"""glibc's way is several for each core: then what threads free lies scattered, and a server whose Python objects stay
the same grew by 7 % over 180 000 jobs (``docs/reliability.md``)."""

_M_ARENA_MAX = -8  # of mallopt(3)


def limit_arenas(environ: Mapping[str, str]) -> None:
    """Have all threads share a few of glibc's arenas; before there are threads.

    Other C libraries have none, and ``MALLOC_ARENA_MAX`` and ``GLIBC_TUNABLES`` in the environment stay in force.
    """
    if "MALLOC_ARENA_MAX" in environ or "glibc.malloc.arena_max" in environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, MAX_ARENAS)
