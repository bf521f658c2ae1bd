"""A lease on a folder: a file that at most one process holds, and no longer than it lives.

On one machine, containers included, the kernel's lock on the file decides, and it ends with its process however that
ends. Across machines that share a volume such a lock may be invisible; there the file's age decides, which the holder
renews. A holder that is mistaken for dead does no harm: two downloads write the same bytes, and a folder is put in
place by one rename. The lease saves work; correctness does not depend on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
import uuid
from functools import cache
from pathlib import Path

DEFAULT_LEASE_S = 60.0
RENEWALS = 4
"""How often a lease is renewed before it would run out."""


@cache
def this_machine() -> str:
    """Return the running kernel's id: the same in all of its containers, another after each boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(uuid.getnode())


class Lease:
    """A file that at most one process holds. Blocks shortly, so it is called in a thread.

    Args:
        path: the file; it may exist without a holder.
        lease_s: seconds after its last renewal for which a holder on another machine counts.
        machine: identifies this machine.
    """

    def __init__(self, path: Path, lease_s: float = DEFAULT_LEASE_S, machine: str | None = None) -> None:
        self.path = path
        self._lease_s = lease_s
        self._machine = machine or this_machine()
        self._file: int | None = None
        self._released = threading.Event()

    def acquire(self) -> bool:
        """Take the lease if it is free; return whether this object holds it now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if not _is_free(file, self._lease_s, self._machine) or not self._is_there(file):
            os.close(file)
            return False
        os.truncate(file, 0)
        os.pwrite(file, self._machine.encode(), 0)
        self._file = file
        self._released.clear()
        threading.Thread(target=self._renew, args=(file,), name="lease", daemon=True).start()
        return True

    def release(self, *, remove: bool = False) -> None:
        """Give the lease back; does nothing if this object does not hold it.

        Args:
            remove: whether to remove the file too.
        """
        file, self._file = self._file, None
        if file is None:
            return
        self._released.set()
        with contextlib.suppress(OSError):  # the file may have been removed with its folder
            os.truncate(file, 0)
            if remove:
                self.path.unlink()
        os.close(file)

    def _is_there(self, file: int) -> bool:
        """Whether the path still names this file: its last holder may have removed it since it was opened."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(file), self.path.stat())
        return False

    def _renew(self, file: int) -> None:
        while not self._released.wait(self._lease_s / RENEWALS):
            with contextlib.suppress(OSError):
                os.utime(file)


def is_held(path: Path, lease_s: float = DEFAULT_LEASE_S, machine: str | None = None) -> bool:
    """Whether any process holds the lease. Blocking."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _is_free(file, lease_s, machine or this_machine())
    finally:
        os.close(file)


def _is_free(file: int, lease_s: float, machine: str) -> bool:
    """Take the kernel's lock, and look for a holder whose lock is not visible here."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    holder = os.pread(file, 100, 0).decode(errors="replace")
    return holder in ("", machine) or time.time() - os.fstat(file).st_mtime > lease_s
