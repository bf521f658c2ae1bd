"""What the log's writer writes and when, and what its callers never wait for."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import pytest

from aiservices.logs import writer as writing
from aiservices.logs.lines import render_json
from aiservices.logs.writer import BATCH_RECORDS, MAX_WAITING_RECORDS, LogWriter, writing_to


class Output:
    """Stands in for standard error; takes lines only while its gate is open."""

    def __init__(self) -> None:
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.writes: list[list[dict[str, Any]]] = []
        self.error: Exception | None = None

    def write(self, data: bytes) -> None:
        self.entered.set()
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.writes.append([json.loads(line) for line in data.splitlines()])

    @property
    def events(self) -> list[str]:
        return [line["event"] for lines in self.writes for line in lines]


@pytest.fixture
def output() -> Output:
    return Output()


@pytest.fixture
def writer(output: Output) -> Iterator[LogWriter]:
    writer = LogWriter()
    writer.start(render_json, output.write)
    yield writer
    output.gate.set()
    writer.close()


def record(event: str, **fields: Any) -> dict[str, Any]:
    return {**fields, "event": event, "level": "info", "timestamp": time.time()}


def rendered(**fields: Any) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(render_json(fields))
    return shown


# --- when lines are written ---


def test_what_waited_while_the_writer_was_busy_is_one_write(writer: LogWriter, output: Output) -> None:
    output.gate.clear()
    writer.warning(record("first"))
    assert output.entered.wait(10)
    for i in range(20):
        writer.info(record(f"line{i}"))
    output.gate.set()
    writer.close()
    assert [len(lines) for lines in output.writes] == [1, 20]
    assert output.events == ["first", *(f"line{i}" for i in range(20))]


@pytest.mark.parametrize("level", ["warning", "error", "critical"])
def test_a_line_waits_for_others_until_one_is_urgent(
    writer: LogWriter, output: Output, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    monkeypatch.setattr(writing, "FLUSH_INTERVAL_S", 3600)
    output.gate.clear()
    writer.info(record("quiet"))
    getattr(writer, level)(record("loud"))
    assert output.entered.wait(10)
    output.gate.set()
    writer.close()
    assert output.events == ["quiet", "loud"]
    assert len(output.writes) == 1


def test_many_lines_do_not_wait(writer: LogWriter, output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "FLUSH_INTERVAL_S", 3600)
    for _ in range(BATCH_RECORDS):
        writer.info(record("quiet"))
    assert not output.entered.is_set()
    writer.info(record("quiet"))
    assert output.entered.wait(10)


def test_a_single_line_is_written_in_the_end(writer: LogWriter, output: Output) -> None:
    writer.debug(record("quiet"))
    assert output.entered.wait(10)


def test_a_writer_can_be_started_again_and_writes_what_came_meanwhile(writer: LogWriter, output: Output) -> None:
    writer.close()
    writer.info(record("between"))
    writer.start(render_json, output.write)
    writer.close()
    assert output.events == ["between"]


# --- what is lost ---


def test_lines_beyond_the_bound_are_dropped_and_counted(writer: LogWriter, output: Output) -> None:
    output.gate.clear()
    writer.warning(record("first"))
    assert output.entered.wait(10)
    for i in range(MAX_WAITING_RECORDS + 7):
        writer.info(record("line", i=i))
    output.gate.set()
    writer.close()
    assert output.events.count("line") == MAX_WAITING_RECORDS
    told = [line for lines in output.writes for line in lines if line["event"] == "log.dropped"]
    assert [(line["count"], line["level"]) for line in told] == [(7, "warning")]


def test_lines_that_could_not_be_written_are_counted(writer: LogWriter, output: Output) -> None:
    for output.error in (OSError("no space left"), ValueError("closed")):
        output.entered.clear()
        writer.warning(record("lost"))
        assert output.entered.wait(10)
    writer.close()
    output.error = None
    writer.start(render_json, output.write)
    writer.warning(record("first"))
    writer.close()
    assert sum(line.get("count", 0) for lines in output.writes for line in lines) == 2
    assert output.events.count("first") == 1


def test_a_descriptor_that_must_not_block_gets_every_byte() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data = bytes(range(256)) * 4096
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "wb") as stream:
        write = writing_to(stream)  # type: ignore[arg-type]  # asked for its descriptor only
        thread = threading.Thread(target=write, args=(data,))
        thread.start()
        assert reader.read(len(data)) == data
        thread.join()


@pytest.mark.parametrize("waiting", [0, BATCH_RECORDS, MAX_WAITING_RECORDS], ids=["idle", "many", "full"])
def test_a_signal_or_a_finalizer_may_log_in_the_middle_of_any_line(
    writer: LogWriter, output: Output, waiting: int
) -> None:
    """What Python runs between two lines of a caller, on the same thread, would meet any lock that this one holds."""

    def log_here(frame: FrameType, event: str, argument: Any) -> Any:
        sys.settrace(None)
        writer.error(record("inner"))
        sys.settrace(log_here)
        return log_here

    def log_and_be_interrupted() -> None:
        sys.settrace(log_here)
        writer.error(record("outer"))
        sys.settrace(None)

    output.gate.clear()
    writer.warning(record("first"))
    assert output.entered.wait(10)
    for _ in range(waiting):
        writer.info(record("line"))
    thread = threading.Thread(target=log_and_be_interrupted, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


# --- what a line says ---


class Colour(StrEnum):
    RED = "red"


@attrs.frozen
class Key:
    name: str
    secret: str = attrs.field(repr=False)


def test_values_that_json_does_not_know_are_spelt_out() -> None:
    shown = rendered(
        a=Path("/x"), b=Colour.RED, c=ValueError("q"), d=b"\xff", e={1: (2, {3})}, f=float("nan"), g=object
    )
    assert shown == {
        "a": "/x", "b": "red", "c": "ValueError('q')", "d": "b'\\xff'", "e": {"1": [2, [3]]}, "f": None,
        "g": "<class 'object'>",
    }  # fmt: skip


def test_a_secret_that_repr_hides_stays_hidden() -> None:
    assert rendered(key=Key("k", "s3cret"), keys=[Key("k", "s3cret")]) == {
        "key": "Key(name='k')",
        "keys": ["Key(name='k')"],
    }


def test_text_that_is_no_unicode_leaves_the_rest_of_the_line_as_it_is() -> None:
    assert rendered(event="e", path="\ud800", n=2**70) == {"event": "e", "path": "'\\ud800'", "n": 2**70}


class Unreadable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_record_that_cannot_be_formatted_is_named_and_the_others_are_written(
    writer: LogWriter, output: Output
) -> None:
    endless: list[Any] = []
    endless.append(endless)
    writer.info(record("one", value=Unreadable()))
    writer.info(record("two", value=endless))
    writer.warning(record("three"))
    writer.close()
    (lines,) = output.writes
    assert output.events == ["log.unreadable", "log.unreadable", "three"]
    assert [(line["of"], line["error"]) for line in lines[:2]] == [
        ("one", "RuntimeError"),
        ("two", "RecursionError"),
    ]


class Held:
    """Something big in a frame of a traceback."""


def test_what_an_exception_holds_is_let_go_once_it_is_written(writer: LogWriter) -> None:
    gone = threading.Event()

    def fails() -> weakref.ref[Held]:
        held = Held()
        try:
            raise RuntimeError
        except RuntimeError:
            writer.error(logging.LogRecord("library", logging.ERROR, "", 0, "failed", None, sys.exc_info()))
        return weakref.ref(held, lambda _: gone.set())

    seen = fails()
    assert gone.wait(10)
    assert seen() is None
