from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from tools.benchmarks.overhead.peers import OURS, PEERS
from tools.benchmarks.overhead.report import Row, Spread, cpu_model, document, markdown, number, ratio
from tools.benchmarks.overhead.wire import Outcome

FASTAPI = next(peer for peer in PEERS if peer.name == "fastapi")
MACHINE = {
    "cpu": "A processor",
    "cores": 2,
    "python": "3.11",
    "system": "Linux 6",
    "versions": {"aiservices": {"aiohttp": "3"}, "LitServe": {"litserve": "0.2", "uvicorn": "1"}},
}
SETTINGS = {"rounds": 3, "seconds": 4.0, "generator_core": 1}


def outcome(rate: float, errors: int = 0, client_cpu: float = 0.5) -> Outcome:
    return Outcome(
        requests=int(rate),
        seconds=1.0,
        requests_per_s=rate,
        p50_ms=1000 / rate if rate else math.nan,
        p99_ms=2000 / rate if rate else math.nan,
        errors=errors,
        first_error="503 b'full'" if errors else "",
        polls_per_request=1.5,
        client_cpu=client_cpu,
    )


def rounds(*rates: float | None) -> list[Outcome | None]:
    return [None if rate is None else outcome(rate) for rate in rates]


def shown(measured: dict[Row, list[Outcome | None]]) -> str:
    return markdown(measured, OURS, MACHINE, SETTINGS)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((100, 200, 300), (50, 200, 100), Spread(2.0, 1.0, 3.0)),
        ((100, None, 300), (50, 200, 100), Spread(2.5, 2.0, 3.0)),
        ((100, 100), (0, 50), Spread(2.0, 2.0, 2.0)),
        ((None,), (50,), None),
    ],
)
def test_a_ratio_is_taken_round_by_round(
    ours: Sequence[float | None], theirs: Sequence[float | None], expected: Spread | None
) -> None:
    assert ratio(rounds(*ours), rounds(*theirs)) == expected


def test_a_spread_leaves_out_what_is_no_number() -> None:
    assert Spread.of([3.0, math.nan, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0)
    assert Spread.of([math.nan]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12346"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.0123"), (0.0, "0")],
)
def test_a_number_has_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_a_table_has_medians_spreads_and_how_ours_compares() -> None:
    text = shown({
        Row(OURS, "runsync", 32): rounds(1000, 2000, 4000),
        Row(FASTAPI, "runsync", 32): rounds(500, 500, 500),
        Row(OURS, "runsync", 1): rounds(100, 100, 100),
    })  # fmt: skip
    assert text.splitlines()[:7] == [
        "### `runsync`: a job is run and its output comes in the same answer",
        "",
        "| callers | server | requests/s | p50 ms | p99 ms | errors | aiservices / it |",
        "|---|---|---|---|---|---|---|",
        "| 1 | aiservices | 100 | 10.0 | 20.0 | 0 |  |",
        "| 32 | aiservices | 2000 (1000 to 4000) | 0.500 (0.250 to 1.00) | 1.00 (0.500 to 2.00) | 0 |  |",
        "| 32 | FastAPI by hand | 500 | 2.00 | 4.00 | 0 | 4.00 (2.00 to 8.00) |",
    ]
    assert "Rounds: 3 of 4 seconds a row" in text
    assert "the load generator has a core to itself" in text
    assert f"* FastAPI by hand: {FASTAPI.note}" in text
    assert text.endswith("* aiservices: aiohttp 3\n* LitServe: litserve 0.2, uvicorn 1")


def test_polls_have_a_column_where_jobs_are_polled() -> None:
    lines = shown({Row(OURS, "poll", 1): rounds(100)}).splitlines()
    assert lines[2] == "| callers | server | requests/s | p50 ms | p99 ms | polls | errors | aiservices / it |"
    assert lines[4] == "| 1 | aiservices | 100 | 10.0 | 20.0 | 1.50 | 0 |  |"


def test_errors_and_a_busy_generator_are_said() -> None:
    text = shown({Row(OURS, "submit", 8): [outcome(100, errors=2), None, outcome(100, errors=1, client_cpu=0.99)]})
    assert "| 8 | aiservices | 100 | 10.0 | 20.0 | 3 |  |" in text
    assert "* first error of aiservices, `submit`, 8 callers: `503 b'full'`" in text
    assert "core was full, the server's may not have been: aiservices, `submit`, 8 callers" in text


def test_a_row_where_all_went_wrong_shows_none_of_its_times() -> None:
    assert "| 8 | aiservices | 0 |  |  | 5 |  |" in shown({Row(OURS, "submit", 8): [outcome(0, errors=5)]})


def test_the_document_is_json_that_holds_every_round() -> None:
    measured = {Row(OURS, "submit", 1): rounds(100, 300), Row(FASTAPI, "submit", 1): rounds(0, 100)}
    text = json.dumps(document(measured, OURS, MACHINE, SETTINGS), allow_nan=False)
    read: dict[str, Any] = json.loads(text)
    ours, theirs = read["rows"]
    assert (ours["server"], ours["operation"], ours["callers"]) == ("aiservices", "submit", 1)
    assert ours["requests_per_s"] == attrs.asdict(Spread(200, 100, 300))
    assert [one["requests_per_s"] for one in ours["rounds"]] == [100, 300]
    assert theirs["ratio"] == attrs.asdict(Spread(3, 3, 3))
    assert theirs["rounds"][0]["p50_ms"] is None
    assert read["machine"]["cores"] == 2


def test_the_processors_name_is_read_where_the_system_gives_it(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD: EPYC\nflags\t: x\n", encoding="utf-8")
    assert cpu_model(tmp_path / "cpuinfo") == "AMD: EPYC"
    assert cpu_model(tmp_path / "none")
