from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiservices.storage.lease import Lease, is_held

HOLDER = """
import sys
from pathlib import Path
from aiservices.storage.lease import Lease
lease = Lease(Path(sys.argv[1]))
print(lease.acquire(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "lease"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lease."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_one_process_holds_it_at_a_time(path: Path) -> None:
    first, second = Lease(path), Lease(path)
    assert first.acquire()
    assert not second.acquire()
    assert is_held(path)
    first.release()
    assert not is_held(path)
    assert second.acquire()
    second.release()
    second.release()


def test_it_ends_with_a_killed_process(path: Path, holder: subprocess.Popen[str]) -> None:
    lease = Lease(path)
    assert not lease.acquire()
    holder.kill()
    holder.wait()
    assert lease.acquire()
    lease.release()


def test_a_holder_on_another_machine_counts_while_it_renews(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("another machine")  # and no lock that could be seen here
    lease = Lease(path, lease_s=60)
    assert is_held(path, lease_s=60)
    assert not lease.acquire()
    long_ago = time.time() - 61
    os.utime(path, (long_ago, long_ago))
    assert not is_held(path, lease_s=60)
    assert lease.acquire()
    lease.release()


def test_it_is_renewed_while_it_is_held(path: Path) -> None:
    lease = Lease(path, lease_s=0.02)
    assert lease.acquire()
    os.utime(path, (0, 0))
    until = time.monotonic() + 10
    while path.stat().st_mtime == 0:
        assert time.monotonic() < until, "it was never renewed"
        os.sched_yield()
    assert not Lease(path, lease_s=60, machine="another").acquire()
    lease.release()


def test_a_lease_that_was_removed_with_its_folder_can_be_released(path: Path) -> None:
    lease = Lease(path)
    assert lease.acquire()
    path.unlink()
    path.parent.rmdir()
    lease.release(remove=True)
    assert lease.acquire()
    lease.release(remove=True)
    assert not path.exists()


def test_a_lease_without_a_file_is_free(path: Path) -> None:
    assert not is_held(path)
