"""Alert rules, dashboard and documentation: what they name exists on a real server, and rules fire when they should."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiservices.fetch import FetchResult
from aiservices.jobs import EndReason
from aiservices.metrics import Metrics
from aiservices.registry import Registry
from aiservices.settings import Config, ServerConfig, ServiceConfig
from aiservices.transports.http import create_app
from tests.test_metrics import SERIES, with_everything
from tests.transports.http.apps import MakeClient, ended, run

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "monitoring"
DOCUMENT = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))
SCRAPED = {"instance", "job"}
"""Labels that Prometheus itself adds."""


def labels_by_name() -> dict[str, set[str]]:
    """The labels of each name that an expression may use."""
    known: dict[str, set[str]] = {}
    for name, kind, labels in SERIES:
        known.setdefault(name, set()).update(labels)
        if kind == "histogram":
            known |= {f"{name}_bucket": {*labels, "le"}, f"{name}_sum": {*labels}, f"{name}_count": {*labels}}
            del known[name]
    return known


def rules() -> list[str]:
    """Every expression of the alert rules, without reading YAML: one line, or what is indented below ``>-``."""
    text = (FOLDER / "alerts.yml").read_text(encoding="utf-8")
    found = re.findall(r"^        expr: (?:>-\n((?:          .*\n)+)|(.*)\n)", text, re.MULTILINE)
    assert len(found) == text.count("- alert:")
    return [folded or line for folded, line in found]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """Every expression of the dashboard."""
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def variables() -> dict[str, Any]:
    return {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each series of ours in an expression, and the labels that it is selected by."""
    for name, matchers in re.findall(r"(aiservices_\w+)(?:\{(.*?)\})?", expression):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))


@pytest.mark.parametrize("expression", [*rules(), *queries()])
def test_each_series_and_label_that_an_expression_names_exists(expression: str) -> None:
    known, used = labels_by_name(), list(selectors(expression))
    assert used
    assert all(expression.count(opening) == expression.count(closing) for opening, closing in ("()", "{}", "[]"))
    for name, labels in used:
        assert name in known
        assert labels <= known[name] | SCRAPED
    grouped = {label for labels in re.findall(r"by \((.*?)\)", expression) for label in labels.split(", ")}
    assert grouped <= set.union(*(known[name] for name, _ in used)) | SCRAPED
    assert set(re.findall(r"\$(\w+)", expression)) <= variables().keys() | {"__rate_interval"}


async def test_each_series_exists_on_a_server_that_did_some_jobs(aiohttp_client: MakeClient) -> None:
    upper = ServiceConfig(name="upper", handler="tests.fakes:Upper", device="cpu")
    client = await aiohttp_client(
        create_app(Registry(Config(server=ServerConfig(grace_s=0.0), services={"upper": upper})))
    )
    for text in ("mug", "bag"):
        await ended(client, "upper", await run(client, "upper", text=text))
    shown = await (await client.get("/metrics")).text()
    served = {
        (name, kind)
        for name, kind in re.findall(r"^# TYPE (aiservices_\w+) (\w+)$", shown, re.MULTILINE)
        if not name.endswith("_created")
    }
    assert served == {(name, kind) for name, kind, _ in SERIES}


def test_the_dashboard_is_one_that_grafana_10_reads() -> None:
    assert DASHBOARD["schemaVersion"] >= 38
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    assert {panel["type"] for panel in every} == {"row", "stat", "timeseries"}
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in every)
        for x, y in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24
    assert [variable["type"] for variable in variables().values()] == ["datasource", "query", "query"]
    for variable in list(variables().values())[1:]:
        assert {name for name, _ in selectors(variable["definition"])} <= labels_by_name().keys()


def test_what_is_served_is_shown_on_the_dashboard() -> None:
    shown = {name for expression in queries() for name, _ in selectors(expression)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert families == {name for name, _, _ in SERIES}


def test_the_documentation_lists_the_series_that_are_served() -> None:
    rows = re.findall(r"^\| `(aiservices_\w+)` \| (\w+) \|(.*?)\| .+ \|$", DOCUMENT, re.MULTILINE)
    listed = {(name, kind, tuple(sorted(re.findall(r"`(\w+)`", labels)))) for name, kind, labels in rows}
    assert len(rows) == len(listed)
    assert listed == SERIES


def test_the_documentation_lists_why_jobs_end_and_what_comes_of_downloads() -> None:
    reasons = re.findall(r"^\| `(\w+)` \| [A-Z_]+ \|", DOCUMENT, re.MULTILINE)
    assert reasons == [reason.value for reason in EndReason]
    downloads = DOCUMENT.partition("### Downloads")[2].partition("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", downloads, re.MULTILINE)[1:] == [result.value for result in FetchResult]


def test_the_documentation_lists_the_alerts() -> None:
    text = (FOLDER / "alerts.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(Aiservices\w+)` \| (\w+) \|", DOCUMENT, re.MULTILINE)
    named = re.findall(r"- alert: (\w+).*?severity: (\w+)", text, re.DOTALL)
    assert listed == named


def test_the_rules_fire_as_their_own_test_says() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, which comes with Prometheus")
    command = [promtool, "test", "rules", "alerts_test.yml"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_understands_every_query(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, which comes with Prometheus")
    plain = [re.sub(r"\$(?=__rate_interval)__rate_interval", "5m", query) for query in queries()]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(plain)]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")  # YAML holds JSON
    command = [promtool, "check", "rules", "--lint=none", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_reads_what_is_served() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, which comes with Prometheus")
    command = [promtool, "check", "metrics"]
    for metrics in (Metrics(), with_everything()):
        body, _ = metrics.render()
        done = subprocess.run(command, input=body, capture_output=True, timeout=30, check=False)
        assert b"aiservices_" not in done.stderr, done.stderr.decode()
