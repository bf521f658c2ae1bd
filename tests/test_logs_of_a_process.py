"""What whole processes write to standard error: set up, with nobody reading, and to the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiservices.logs.writer import MAX_WAITING_RECORDS

ROOT = Path(__file__).parent.parent
PREAMBLE = """
import logging, os, sys
from structlog.testing import capture_logs
from aiservices.logs import configure_logging, get_logger
log = get_logger("module")
"""
LOGGED = 3 * MAX_WAITING_RECORDS


def command(program: str) -> list[str]:
    return [sys.executable, "-c", PREAMBLE + program]


def logged_by(program: str) -> list[dict[str, Any]]:
    """What a process wrote to the log before it ended."""
    done = subprocess.run(command(program), cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_caller_never_waits_for_a_reader() -> None:
    program = f"""
configure_logging("info", "json")
for i in range({LOGGED}): log.info("a.line", i=i)
print("logged", flush=True)
sys.stdin.read(1)
log.info("the.end")
"""
    pipe = subprocess.PIPE
    with subprocess.Popen(command(program), cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "logged\n"  # nobody has read a line of the log yet
        lines: list[dict[str, Any]] = []
        for line in process.stderr:
            lines.append(json.loads(line))
            if lines[-1]["event"] == "log.dropped":  # so there is room again
                process.stdin.close()
    written = [line["i"] for line in lines if line["event"] == "a.line"]
    assert written == sorted(written)
    assert len(written) >= MAX_WAITING_RECORDS
    assert len(written) + sum(line["count"] for line in lines if line["event"] == "log.dropped") == LOGGED
    assert lines[-1]["event"] == "the.end"


@pytest.mark.parametrize("end", ["", "logging.shutdown(); os._exit(0)"], ids=["exit", "os._exit"])
def test_a_reader_that_never_comes_does_not_hold_up_the_end(end: str) -> None:
    program = f"configure_logging()\nfor i in range(9_000): log.info('a.line')\n{end}"
    with subprocess.Popen(command(program), cwd=ROOT, stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


def test_events_and_the_standard_library_come_out_alike_in_the_order_they_came() -> None:
    program = """
configure_logging("info", "json")
log.info("job.finished", service="echo", delay_s=0.5, error=None)
logging.getLogger("library").warning("%d things", 3, extra={"size": 4})
log.debug("unseen")
logging.getLogger("library").debug("unseen")
log.warning("the.end")
"""
    lines = logged_by(program)
    assert all(line.pop("timestamp").endswith("Z") for line in lines)
    assert lines == [
        {"service": "echo", "delay_s": 0.5, "error": None, "event": "job.finished", "level": "info"},
        {"event": "3 things", "level": "warning", "size": 4},
        {"event": "the.end", "level": "warning"},
    ]


def test_a_traceback_is_written_for_each_way_to_hand_over_an_exception() -> None:
    program = """
configure_logging("info", "json")
try: 1 / 0
except ZeroDivisionError as error:
    log.error("object", exc_info=error)
    log.error("handled", exc_info=True)
    log.exception("method")
    logging.getLogger("library").exception("standard")
log.error("none", exc_info=None)
"""
    *lines, none = logged_by(program)
    assert [line["event"] for line in lines] == ["object", "handled", "method", "standard"]
    assert all(line["exception"].endswith("ZeroDivisionError: division by zero") for line in lines)
    assert all("exc_info" not in line for line in [*lines, none])
    assert "exception" not in none


def test_libraries_that_write_signed_requests_stay_at_info() -> None:
    program = """
configure_logging("debug", "json")
log.debug("ours")
for name in ("botocore.auth", "urllib3.connectionpool"):
    logging.getLogger(name).debug("signature")
    logging.getLogger(name).info("harmless")
"""
    assert [line["event"] for line in logged_by(program)] == ["ours", "harmless", "harmless"]


def test_a_terminal_gets_colours_and_a_pipe_json() -> None:
    program = command("configure_logging()\nlog.info('an.event', seconds=1.5)")
    terminal, end = os.openpty()
    subprocess.run(program, cwd=ROOT, stderr=end, check=True)
    os.close(end)
    with os.fdopen(terminal, "rb", buffering=0) as reader:
        shown = reader.read(4096)
    assert b"\x1b[" in shown
    assert b"an.event" in shown
    assert shown.endswith(b"\r\n")
    assert logged_by("configure_logging()\nlog.info('an.event', seconds=1.5)")[0]["seconds"] == 1.5


def test_the_console_format_shows_tracebacks_too() -> None:
    program = command(
        "configure_logging('info', 'console')\ntry: 1 / 0\nexcept Exception: log.exception('bad', path='\\ud800')"
    )
    shown = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    assert "ZeroDivisionError: division by zero" in shown
    assert "\\ud800" in shown


def test_a_standard_record_with_missing_values_is_named() -> None:
    (line,) = logged_by("configure_logging('info', 'json')\nlogging.getLogger('library').info('%s %s', 1)")
    assert (line["event"], line["of"], line["error"]) == ("log.unreadable", "%s %s", "TypeError")


@pytest.mark.parametrize("end", ["", "logging.shutdown(); os._exit(0)", "sys.exit(0)"], ids=["end", "os._exit", "exit"])
def test_everything_is_written_before_the_process_ends(end: str) -> None:
    program = f"configure_logging('info', 'json')\nfor i in range(2_000): log.info('a.line', i=i)\n{end}"
    assert [line["i"] for line in logged_by(program)] == list(range(2_000))


def test_a_second_call_changes_where_used_loggers_write_to() -> None:
    program = """
configure_logging("info", "console")
configure_logging("info", "json")
log.info("used")
configure_logging("info", "json")
log.info("again")
"""
    assert [line["event"] for line in logged_by(program)] == ["used", "again"]


def test_a_stream_without_a_descriptor_will_do() -> None:
    program = """
import io
sys.stderr = io.StringIO()
configure_logging("info", "json")
log.info("an.event")
logging.shutdown()
sys.__stderr__.write(sys.stderr.getvalue())
"""
    assert [line["event"] for line in logged_by(program)] == ["an.event"]


def test_events_can_be_captured_before_and_after_a_logger_was_used() -> None:
    program = """
configure_logging("info", "json")
for _ in range(2):
    with capture_logs() as seen:
        log.info("captured", n=1)
        log.debug("below the level")
    assert seen == [{"event": "captured", "n": 1, "log_level": "info"}], seen
    log.info("written")
"""
    assert [line["event"] for line in logged_by(program)] == ["written", "written"]


def test_pythons_warnings_are_lines_of_the_log() -> None:
    program = """
import warnings
configure_logging("info", "json")
warnings.warn("the picture is large")
log.info("the.end")
"""
    warned, _ = logged_by(program)
    assert (warned["level"], "UserWarning: the picture is large" in warned["event"]) == ("warning", True)
