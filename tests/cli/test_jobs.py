"""``jobs`` against a server in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from aiservices.callers import Caller
from aiservices.cli import Exit, server
from aiservices.environment import KEY_VARIABLE
from aiservices.jobs import JobRequest
from aiservices.settings import ServerConfig
from aiservices.transports.http.lookup import REGISTRY
from tests.cli.conftest import Cli
from tests.fakes import Gated, Upper
from tests.running import LIMIT_S
from tests.transports.http import test_tenants
from tests.transports.http.apps import make_app

UNKNOWN = "00000000-0000-4000-8000-000000000000"


@attrs.define
class Live:
    """A server, and the command line of somebody who steers it."""

    app: web.Application
    url: str
    cli: Cli

    async def jobs(self, *words: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(self.cli, "jobs", *words, "--url", self.url)

    async def document(self, *words: str) -> Any:
        code, out, err = await self.jobs(*words, "--json")
        assert (code, err) == (Exit.OK, "")
        return json.loads(out)

    async def run(self, service: str, text: str, *, wait: bool = True) -> str:
        job = self.app[REGISTRY].get(service).submit(JobRequest(input={"text": text}))
        if wait:
            await job.wait_end(LIMIT_S)
        return job.id


async def serve(app: web.Application, cli: Cli) -> AsyncIterator[Live]:
    served = TestServer(app)
    await served.start_server()
    yield Live(app, str(served.make_url("/")), cli)
    for service in app[REGISTRY].services.values():
        if isinstance(service.handler, Gated):
            service.handler.gate.set()
    await served.close()


@pytest.fixture
async def live(cli: Cli) -> AsyncIterator[Live]:
    async for each in serve(make_app(Upper, Gated, max_batch_size=1), cli):
        yield each


tenants_server = test_tenants.server


@pytest.fixture
async def secured(cli: Cli, tenants_server: ServerConfig) -> AsyncIterator[Live]:
    async for each in serve(make_app(Upper, server=tenants_server), cli):
        yield each


async def test_list_shows_the_jobs_of_every_service_the_newest_first(live: Live) -> None:
    assert await live.jobs("list") == (Exit.OK, "no jobs\n", "")
    first = await live.run("upper", "a")
    second = await live.run("gated", "b", wait=False)
    third = await live.run("upper", "fail")
    code, out, _ = await live.jobs("list")
    lines = [line.split() for line in out.splitlines()]
    assert code == Exit.OK
    assert lines[0] == ["ID", "SERVICE", "STATUS", "CREATED", "WAITED", "RAN", "NOTE"]
    assert [(line[0], line[1], line[2]) for line in lines[1:]] == [
        (third, "upper", "FAILED"),
        (second, "gated", "IN_PROGRESS"),
        (first, "upper", "COMPLETED"),
    ]
    assert (
        len({line.find(word) for line, word in zip(out.splitlines()[1:], ("FAILED", "IN_PRO", "COMPL"), strict=True)})
        == 1
    )
    shown = await live.document("list")
    assert [job["id"] for job in shown["jobs"]] == [third, second, first]
    assert shown["more"] is False


async def test_list_takes_a_service_statuses_and_a_limit(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_LIMIT", 2)
    done = [await live.run("upper", text) for text in ("a", "fail", "b", "c", "fail")]
    await live.run("gated", "d", wait=False)

    async def found(*words: str) -> list[str]:
        return [job["id"] for job in (await live.document("list", *words))["jobs"]]

    assert await found("--service", "upper") == done[::-1]
    assert await found("--service", "upper", "--limit", "3") == done[:1:-1]
    assert await found("--status", "FAILED,TIMED_OUT") == [done[4], done[1]]
    assert (await live.document("list", "--status", "FAILED", "--limit", "1"))["more"] is True
    assert "1 shown; there may be older ones (--limit)\n" in (await live.jobs("list", "--limit", "1"))[1]


async def test_list_tells_what_a_job_waits_for_and_what_failed_it(live: Live) -> None:
    await live.run("gated", "a", wait=False)
    await live.run("gated", "b", wait=False)
    service = live.app[REGISTRY].get("upper")
    job = service._jobs.get(await live.run("upper", "fail"))
    job.error = "\x1b[2J" + "e" * 200
    _, out, _ = await live.jobs("list")
    assert "place 1\n" in out
    assert " [2J" + "e" * 76 + "…\n" in out
    assert "\x1b" not in out


async def test_show_finds_the_job_whatever_its_service(live: Live) -> None:
    job_id = await live.run("gated", "mug", wait=False)
    code, out, _ = await live.jobs("show", job_id)
    assert (code, out.splitlines()[0].split()) == (Exit.OK, ["id", job_id])
    job_id = await live.run("upper", "mug")
    code, out, _ = await live.jobs("show", job_id)
    assert code == Exit.OK
    assert out.endswith('output\n{\n  "text": "MUG"\n}\n')
    shown = await live.document("show", job_id)
    assert (shown["service"], shown["status"], shown["output"]) == ("upper", "COMPLETED", {"text": "MUG"})


async def test_cancel_ends_a_job_and_says_so_where_it_had_ended(live: Live) -> None:
    job_id = await live.run("gated", "a", wait=False)
    assert await live.jobs("cancel", job_id) == (Exit.OK, f"{job_id}: CANCELLED\n", "")
    assert await live.document("cancel", job_id) == {"id": job_id, "status": "CANCELLED", "service": "gated"}
    done = await live.run("upper", "a")
    assert await live.jobs("cancel", done) == (Exit.FAILED, f"{done}: COMPLETED\n", "aiservices: it had ended before\n")


async def test_retry_runs_a_failed_job_again_and_no_other(live: Live) -> None:
    job_id = await live.run("upper", "fail")
    code, out, _ = await live.jobs("retry", job_id)
    assert (code, out.split(":")[0]) == (Exit.OK, job_id)
    await live.app[REGISTRY].get("upper")._jobs.get(job_id).wait_end(LIMIT_S)
    assert (await live.document("show", job_id))["retries"] == 1
    code, _, err = await live.jobs("retry", await live.run("upper", "a"))
    assert code == Exit.FAILED
    assert "only a FAILED or TIMED_OUT job can be retried; this one is COMPLETED" in err


async def test_each_key_lists_its_tenants_jobs(secured: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = await secured.jobs("list")
    assert (code, out) == (Exit.FAILED, "")
    assert f"set {KEY_VARIABLE} to one that it knows" in err
    service = secured.app[REGISTRY].get("upper")
    known = {}
    for name in ("shop", "rival"):
        job = service.submit(JobRequest(input={"text": "a"}, caller=Caller(tenant=name, key=f"{name}-key")))
        known[name] = job.id
    for name, job_id in known.items():
        monkeypatch.setenv(KEY_VARIABLE, test_tenants.KEYS[name])
        shown = (await secured.document("list"))["jobs"]
        assert [job["id"] for job in shown] == [job_id]
    code, _, err = await secured.jobs("cancel", known["shop"])
    assert code == Exit.FAILED
    assert f"no job {known['shop']} in upper" in err
    monkeypatch.setenv(KEY_VARIABLE, test_tenants.KEYS["operator"])
    _, out, _ = await secured.jobs("list")
    owners = [word for word in out.split() if "-key" in word]
    assert owners == ["rival/rival-key", "shop/shop-key"]


async def test_the_settings_say_where_their_own_server_is_and_with_which_key(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ServerConfig(grace_s=0.0, api_keys=("one-of-the-keys",))
    async for live in serve(make_app(Upper, server=own), cli):
        monkeypatch.setenv("AISERVICES_PORT", live.url.rstrip("/").rpartition(":")[2])
        monkeypatch.setenv("AISERVICES_API_KEYS", "one-of-the-keys,another")
        assert await asyncio.to_thread(cli, "jobs", "list") == (Exit.OK, "no jobs\n", "")
        monkeypatch.setenv(KEY_VARIABLE, "none-of-the-keys")
        assert (await asyncio.to_thread(cli, "jobs", "list"))[0] == Exit.FAILED, "the own key goes first"
        monkeypatch.delenv(KEY_VARIABLE)
        code, _, err = await live.jobs("list")
        assert code == Exit.FAILED, "a key of the settings went to an address that is not theirs"
        assert KEY_VARIABLE in err


async def test_what_cannot_be_done_is_told_with_what_to_do(live: Live) -> None:
    for words, code, complaint in (
        (("show", UNKNOWN), Exit.FAILED, f"no job {UNKNOWN} in upper, gated: it never was, is another tenant's"),
        (("show", "../../readyz"), Exit.USAGE, "jobs show: '../../readyz' is no id of a job; 'aiservices jobs list'"),
        (("list", "--service", "uper"), Exit.USAGE, "no service named 'uper'; there are: upper, gated"),
        (("list", "--status", "DONE"), Exit.USAGE, "status: unknown status 'DONE'"),
    ):
        found = await live.jobs(*words)
        assert found[:2] == (code, "")
        assert found[2].startswith(f"aiservices: {complaint}")


@pytest.mark.parametrize("url", ["127.0.0.1:8001", "ftp://127.0.0.1", "http://", "http://a:b@c", "http://[", "x"])
def test_what_is_no_address_is_refused(cli: Cli, url: str) -> None:
    code, _, err = cli("jobs", "list", "--url", url)
    assert code == Exit.USAGE
    assert err == f"aiservices: --url: expected an address as http://127.0.0.1:8001, got {url!r}\n"


def test_a_server_that_is_not_there_is_told_with_what_to_do(cli: Cli, unused_tcp_port: int) -> None:
    code, _, err = cli("jobs", "list", "--url", f"http://127.0.0.1:{unused_tcp_port}")
    assert code == Exit.FAILED
    assert f"no server answers at http://127.0.0.1:{unused_tcp_port} (" in err
    assert "--journal" in err


def test_a_port_that_the_server_chooses_has_to_be_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AISERVICES_PORT", "0")
    code, _, err = cli("jobs", "list")
    assert (code, "name it with --url" in err) == (Exit.USAGE, True)


@pytest.mark.parametrize("answer", ["<html>", "{}", '{"error": "no such name"}'])
async def test_another_program_at_that_address_is_told(cli: Cli, answer: str) -> None:
    async def respond(request: web.Request) -> web.Response:
        return web.Response(text=answer)

    app = web.Application()
    app.router.add_get("/readyz", respond)
    async with TestServer(app) as other:
        code, _, err = await asyncio.to_thread(cli, "jobs", "list", "--url", str(other.make_url("/")))
    assert code == Exit.FAILED
    assert "is no aiservices" in err
    assert ("(no such name)" in err) == ("error" in answer)


@pytest.mark.parametrize(
    "words",
    [
        "jobs",
        "jobs sing",
        "jobs show",
        "jobs list --limit 0",
        "jobs list --url http://a --journal b",
        "jobs show x --status FAILED",
    ],
)
def test_a_wrong_command_line_is_refused(cli: Cli, words: str) -> None:
    code, _, err = cli(*words.split())
    assert (code, "usage: aiservices" in err) == (Exit.USAGE, True)


def test_settings_may_be_named_before_the_action_and_behind_it(cli: Cli) -> None:
    for words in (["jobs", "--profile", "dmo", "list"], ["jobs", "list", "--profile", "dmo"]):
        assert "no profile 'dmo' (--profile)" in cli(*words)[2]
