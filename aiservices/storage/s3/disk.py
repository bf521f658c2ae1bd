"""File-system operations that the standard library lacks, or leaves to its caller. All of them block."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path


def preallocate(file: int, size: int) -> None:
    """Reserve disk space for an open file, which has that size afterwards.

    Does nothing where the file system cannot: ``os.posix_fallocate`` would write zeros there, so Linux's own
    ``fallocate`` is called.

    Args:
        file: a descriptor that is open for writing.
        size: bytes.

    Raises:
        OSError: the disk is full.
    """
    allocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if allocate is None or allocate(file, 0, ctypes.c_longlong(0), ctypes.c_longlong(size)) == 0:
        return
    if (number := ctypes.get_errno()) in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(number, os.strerror(number))


def size_of(path: Path) -> int | None:
    """Return the size of a file in bytes; None if it cannot be found."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def files_below(folder: Path) -> set[str]:
    """Return the paths of all files below a folder, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def fsync(path: Path) -> None:
    """Wait until a file is on disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
