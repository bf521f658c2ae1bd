"""What the engine's process says went wrong, kept where its parent finds it."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

_RAISED = re.compile(r"^(?:.*\s)?(\w*(?:Error|Exception)): (.+)$")
_READ_BYTES = 1 << 20


class ErrorLog:
    """A folder of its own with the process's errors; both go with :meth:`close`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="aiservices-vllm-", ignore_cleanup_errors=True)
        self._file = Path(self._folder.name) / "errors.log"
        self.config = Path(self._folder.name) / "logging.json"
        """What vLLM configures its logging by: its errors go into the folder, and nothing else goes anywhere."""
        handler = {"class": "logging.FileHandler", "filename": str(self._file), "level": "ERROR"}
        settings = {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"file": handler},
            "loggers": {"vllm": {"handlers": ["file"], "level": "ERROR", "propagate": False}},
        }
        self.config.write_text(json.dumps(settings))

    def last_error(self) -> str:
        """Return the text of the last exception in the log; empty if there is none."""
        if not self._file.exists():
            return ""
        with self._file.open("rb") as file:
            file.seek(max(0, self._file.stat().st_size - _READ_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        raised = [found for line in lines if (found := _RAISED.match(line))]
        return raised[-1][2] if raised else ""

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()
