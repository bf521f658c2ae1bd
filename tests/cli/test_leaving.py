from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from aiservices.cli import leaving
leaving.PATIENCE_S = 0.1
pool = ThreadPoolExecutor(2)
pool.submit(print, "done", flush=True).result()
if sys.argv[1] == "held":
    pool.submit(threading.Event().wait)
pool.shutdown(wait=False)
raise SystemExit(leaving.leave_if_held(3))
"""


def test_a_thread_that_never_ends_does_not_keep_the_process() -> None:
    for how in ("held", "free"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=20, check=False
        )
        assert (done.returncode, done.stdout.splitlines()[0]) == (3, "done"), done.stderr
