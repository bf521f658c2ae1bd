"""Probes, metrics, the page, who may call, what every answer carries, and what the log says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web

from aiservices import errors
from aiservices.errors import ModelBroken, ServiceError
from aiservices.settings import ServerConfig
from aiservices.transports.http import access
from aiservices.transports.http.errors import STATUS
from aiservices.transports.http.lookup import REGISTRY
from tests.fakes import Gated, Unloadable, Upper
from tests.transports.http.apps import Client, MakeClient, ended, handler_of, loaded, make_app, read, run, wait_until

KEYS = ServerConfig(grace_s=0.0, api_keys=("first-key", "second-kéy"))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[MutableMapping[str, Any]]]:
    """What the HTTP transport writes to the log."""
    with structlog.testing.capture_logs() as entries:
        # A logger of its own: one that was used before is bound to the old configuration.
        monkeypatch.setattr(access, "log", structlog.get_logger("access"))
        monkeypatch.setattr("aiservices.transports.http.errors.log", structlog.get_logger("errors"))
        yield entries


async def test_readiness_comes_with_the_models(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, Gated))
    await loaded(client)
    shown = await read(await client.get("/readyz"))
    assert shown["ready"] is True
    assert shown["services"] == {name: {"state": "READY", "demo": False} for name in ("upper", "gated")}
    assert (await client.get("/ping")).status == 200
    assert (await client.get("/livez")).status == 200


class Slow(Gated):
    """Loads only when the test opens the gate."""

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        self.entered.set()
        assert self.gate.wait(10)


async def test_a_loading_model_is_not_ready_and_says_what_it_does(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Slow))
    await wait_until(handler_of(client, Slow).entered)
    shown = await read(await client.get("/readyz"), 503)
    assert shown["services"]["slow"] == {"state": "LOADING", "demo": False, "reason": "the model is being loaded"}
    assert (await client.get("/ping")).status == 204
    assert (await client.get("/livez")).status == 200
    job = await read(await client.get(f"/v2/slow/status/{await run(client, 'slow', text='mug')}"))
    assert (job["status"], job["reason"]) == ("IN_QUEUE", "the model is being loaded")
    handler_of(client, Slow).gate.set()


async def test_a_model_that_loads_with_its_first_job_is_ready(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, load="first_use"))
    assert (await read(await client.get("/readyz")))["services"]["upper"]["state"] == "COLD"
    assert (await client.get("/ping")).status == 200


async def test_a_failed_model_is_not_ready_and_says_why(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Unloadable, load="first_use"))
    await ended(client, "unloadable", await run(client, "unloadable", text="mug"))
    shown = await read(await client.get("/readyz"), 503)
    assert "no such weights" in shown["services"]["unloadable"]["reason"]
    assert (await client.get("/ping")).status == 503
    assert (await client.get("/livez")).status == 200


async def test_where_keys_are_needed_a_reason_that_may_hold_a_path_is_not_told_without_one(
    aiohttp_client: MakeClient,
) -> None:
    client = await aiohttp_client(make_app(Unloadable, server=ServerConfig(grace_s=0.0, api_keys=("key",))))
    async with asyncio.timeout(10):
        while (shown := await read(await client.get("/readyz"), 503))["services"]["unloadable"]["state"] != "FAILED":
            pass
    assert "reason" not in shown["services"]["unloadable"]


class Breaking(Upper):
    """Its device breaks with the first batch."""

    def predict(self, tasks: Sequence[Any]) -> Any:
        raise ModelBroken("the device is gone")


async def test_a_broken_device_ends_the_liveness(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Breaking))
    await ended(client, "breaking", await run(client, "breaking", text="mug"))
    for path in ("/livez", "/readyz", "/ping"):
        assert (await client.get(path)).status == 503


async def test_a_draining_server_is_alive_and_not_ready(aiohttp_client: MakeClient) -> None:
    app = make_app(Upper)
    client = await aiohttp_client(app)
    await loaded(client)
    await app[REGISTRY].drain(0)
    assert (await read(await client.get("/readyz"), 503))["draining"] is True
    assert (await client.get("/ping")).status == 503
    assert (await client.get("/livez")).status == 200


@pytest.mark.parametrize("path", ["/", "/openapi.json", "/livez", "/readyz", "/ping", "/metrics", "/v2/upper/health"])
async def test_what_can_be_read_can_be_asked_for_its_head(aiohttp_client: MakeClient, path: str) -> None:
    client = await aiohttp_client(make_app(Upper))
    await loaded(client)
    answer = await client.head(path)
    assert answer.status == 200
    assert await answer.read() == b""


async def test_metrics_count_jobs_and_refusals(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    await ended(client, "upper", await run(client, "upper", text="mug"))
    await client.post("/v2/upper/run", data=b"{")
    await client.post("/v2/nope/run", data=b"{}")
    text = await (await client.get("/metrics")).text()
    assert 'aiservices_jobs_total{reason="completed",service="upper",status="COMPLETED"} 1.0' in text
    assert 'aiservices_requests_rejected_total{code="invalid_input",service="upper"} 1.0' in text
    assert 'aiservices_requests_rejected_total{code="unknown_service",service=""} 1.0' in text


async def test_requests_are_counted_by_what_they_asked_for_and_never_by_their_path(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    job_id = await run(client, "upper", text="mug")
    for path in (f"/v2/upper/status-sync/{job_id}", f"/upper/status/{job_id}", f"/upper/api/v1/status/{job_id}"):
        assert (await client.get(path)).status == 200
    for path in ("/v2/upper/status/unknown-id", "/no/such/path", "/", "/static/app.js", "/v2/upper/run"):
        await client.get(path)
    lines = (await (await client.get("/metrics")).text()).splitlines()
    counted = {line for line in lines if line.startswith("aiservices_requests_total{")}
    assert counted == {
        'aiservices_requests_total{operation="run",status="2xx"} 1.0',
        'aiservices_requests_total{operation="status-sync",status="2xx"} 1.0',
        'aiservices_requests_total{operation="status",status="2xx"} 2.0',
        'aiservices_requests_total{operation="status",status="4xx"} 1.0',
        'aiservices_requests_total{operation="unknown",status="4xx"} 2.0',
        'aiservices_requests_total{operation="page",status="2xx"} 1.0',
        'aiservices_requests_total{operation="static",status="2xx"} 1.0',
    }
    assert 'aiservices_request_seconds_count{operation="status"} 3.0' in lines


async def test_the_page_and_its_files_come_with_a_policy_that_lets_nothing_else_in(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    types = {"/": "text/html", "/static/app.js": "text/javascript", "/static/style.css": "text/css"}
    for path, content_type in types.items():
        answer = await client.get(path)
        assert (answer.status, answer.content_type) == (200, content_type)
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/static/", "/static/nope", "/static/..%2fapp.py", "/static/%2e%2e/app.py"])
async def test_no_other_file_is_served(aiohttp_client: MakeClient, path: str) -> None:
    client = await aiohttp_client(make_app(Upper))
    assert (await client.get(path)).status == 404


@pytest.mark.parametrize(
    "given", ["Bearer first-key", "bearer  first-key ", "first-key", "Bearer second-kéy", "second-kéy"]
)
async def test_a_key_is_taken_with_and_without_its_scheme(aiohttp_client: MakeClient, given: str) -> None:
    client = await aiohttp_client(make_app(Upper, server=KEYS))
    assert (await client.get("/v2/upper/health", headers={"Authorization": given})).status == 200


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", "first-ke", "first-key2", "Basic first-key", "\xff"])
async def test_a_wrong_key_is_refused_on_every_path_that_needs_one(
    aiohttp_client: MakeClient, given: str | None
) -> None:
    client = await aiohttp_client(make_app(Upper, server=KEYS))
    headers = {} if given is None else {"Authorization": given}
    for path in ("/v2/upper/health", "/metrics", "/v2/nope/health", "/nope", "/static"):
        answer = await client.get(path, headers=headers)
        assert await read(answer, 401) == {"error": "unauthorized"}
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/openapi.json", "/livez", "/readyz", "/ping"])
async def test_the_page_and_the_probes_need_no_key(aiohttp_client: MakeClient, path: str) -> None:
    client = await aiohttp_client(make_app(Upper, load="first_use", server=KEYS))
    assert (await client.get(path)).status == 200


@pytest.mark.parametrize("path", ["/nope", "/v2/upper", "/upper/", "/v2/upper/run/x", "/api/v2/run", "/%00"])
async def test_an_unknown_path_is_answered_in_json(aiohttp_client: MakeClient, path: str) -> None:
    client = await aiohttp_client(make_app(Upper))
    shown = await read(await client.post(path), 404)
    assert shown["services"] == ["upper"]


async def test_a_wrong_method_tells_the_right_one(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    answer = await client.get("/v2/upper/run")
    assert (await read(answer, 405))["error"] == "GET is not allowed here, only POST"
    assert answer.headers["Allow"] == "POST"


async def test_the_callers_request_id_comes_back_and_a_strange_one_is_replaced(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    kept = await client.get("/livez", headers={"X-Request-ID": "order-7"})
    assert kept.headers["X-Request-ID"] == "order-7"
    replaced = await client.get("/livez", headers={"X-Request-ID": "<script>"})
    assert replaced.headers["X-Request-ID"].isalnum()


async def test_every_answer_has_the_security_headers(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    for path in ("/", "/livez", "/nope", "/v2/upper/health"):
        headers = (await client.get(path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "X-Request-ID" in headers
        assert "Content-Security-Policy" in headers


def break_readiness(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> None:
        raise RuntimeError("a secret in the message")

    assert client.app is not None
    monkeypatch.setattr(client.app[REGISTRY].get("upper"), "health", explode)


async def test_an_unexpected_error_is_logged_whole_and_shown_as_nothing(
    aiohttp_client: MakeClient, monkeypatch: pytest.MonkeyPatch, logged: list[MutableMapping[str, Any]]
) -> None:
    client = await aiohttp_client(make_app(Upper))
    break_readiness(client, monkeypatch)
    answer = await client.get("/v2/upper/health", headers={"X-Request-ID": "order-7"})
    assert await read(answer, 500) == {"error": "internal error", "requestId": "order-7"}
    entry = next(entry for entry in logged if entry["event"] == "http.failed")
    assert entry["request"] == "order-7"
    assert isinstance(entry["exc_info"], RuntimeError)


async def test_the_access_log_has_the_time_and_no_query(
    aiohttp_client: MakeClient, logged: list[MutableMapping[str, Any]]
) -> None:
    client = await aiohttp_client(make_app(Upper))
    await client.get("/v2/upper/health?token=secret")
    entry = next(entry for entry in logged if entry["event"] == "http.request")
    assert (entry["method"], entry["path"], entry["status"]) == ("GET", "/v2/upper/health", 200)
    assert isinstance(entry["seconds"], float)
    assert "secret" not in str(logged)


async def test_probes_are_logged_for_debugging_only(
    aiohttp_client: MakeClient, logged: list[MutableMapping[str, Any]]
) -> None:
    client = await aiohttp_client(make_app(Upper))
    await client.get("/livez")
    assert [entry["log_level"] for entry in logged if entry["event"] == "http.request"] == ["debug"]


async def test_a_line_break_in_a_path_makes_no_line_in_the_log(
    aiohttp_client: MakeClient, logged: list[MutableMapping[str, Any]]
) -> None:
    client = await aiohttp_client(make_app(Upper))
    await client.get("/nope%0Aforged")
    assert next(entry["path"] for entry in logged if entry["event"] == "http.request") == "/nope%0Aforged"


def test_every_code_of_the_core_has_a_status() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServiceError)}
    assert {kind.code for kind in kinds} <= STATUS.keys()


async def test_the_registry_lives_as_long_as_the_application(
    aiohttp_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    app: web.Application = make_app(Upper)
    client = await aiohttp_client(app)
    await loaded(client)
    with caplog.at_level(logging.ERROR):
        await client.close()
    assert app[REGISTRY].get("upper").state == "STOPPED"
    assert not caplog.records
