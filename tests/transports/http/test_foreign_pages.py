"""Pages of other sites in a real browser: they submit nothing to a server without keys, and read nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from aiservices.settings import ServerConfig
from tests.fakes import Upper
from tests.transports.http.apps import Client, MakeClient, loaded, make_app, read
from tests.transports.http.browser import dump, needs_browser

REBOUND = "--host-resolver-rules=MAP *.test 127.0.0.1"
ATTACK = """<!doctype html><title>attack</title><pre id="said"></pre><iframe name="hole"></iframe><script>
const target = TARGET, said = document.getElementById("said"), results = {};
const body = JSON.stringify({input: {text: "stolen"}});
const tries = {
  json: {method: "POST", body, headers: {"Content-Type": "application/json"}},
  text: {method: "POST", body},
  opaque: {method: "POST", body, mode: "no-cors"},
  form: {method: "POST", body, mode: "no-cors", headers: {"Content-Type": "application/x-www-form-urlencoded"}},
  read: {},
};
(async () => {
  for (const [name, options] of Object.entries(tries)) {
    const path = name === "read" ? "/v2/upper/health" : "/v2/upper/run";
    try {
      const answer = await fetch(target + path, options);
      results[name] = answer.type === "opaque" ? "" : (answer.ok ? await answer.text() : "");
    } catch (error) { results[name] = ""; }
  }
  const form = Object.assign(document.createElement("form"),
    {method: "POST", action: target + "/v2/upper/run", target: "hole", enctype: "text/plain"});
  form.append(Object.assign(document.createElement("input"), {name: body.slice(0, -1) + ',"x":"', value: '"}'}));
  document.body.append(form);
  form.submit();
  navigator.sendBeacon(target + "/v2/upper/run", body);
  await new Promise((done) => setTimeout(done, 500));
  said.textContent = JSON.stringify(results);
})();
</script>"""


async def attacked(client: Client, target: str, host: str, profile: Path) -> dict[str, str]:
    """Visit the attacker's page under a name; return what it could read by each of its ways."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=ATTACK.replace("TARGET", json.dumps(target)), content_type="text/html")

    evil = web.Application()
    evil.router.add_get("/", page)
    async with TestServer(evil) as server:
        document = await dump(f"http://{host}:{server.port}/", profile, REBOUND)
    said = re.search(r'<pre id="said">(.+?)</pre>', document)
    assert said, document
    results: dict[str, str] = json.loads(said[1].replace("&quot;", '"').replace("&amp;", "&"))
    return results


async def submitted(client: Client) -> int:
    jobs = (await read(await client.get("/v2/upper/health")))["jobs"]
    return int(sum(jobs[key] for key in ("completed", "failed", "inProgress", "inQueue")))


@needs_browser
@pytest.mark.parametrize(
    ("page_host", "target_host"),
    [("127.0.0.1", "127.0.0.1"), ("evil.test", "127.0.0.1"), ("localhost", "127.0.0.1"), ("evil.test", "own.test")],
)
async def test_a_foreign_page_submits_and_reads_nothing(
    aiohttp_client: MakeClient, tmp_path: Path, page_host: str, target_host: str
) -> None:
    client = await aiohttp_client(make_app(Upper))
    await loaded(client)
    before = await submitted(client)
    results = await attacked(client, f"http://{target_host}:{client.port}", page_host, tmp_path)
    assert results == dict.fromkeys(("json", "text", "opaque", "form", "read"), "")
    assert await submitted(client) == before


@needs_browser
async def test_a_rebound_name_is_not_even_shown_the_page(aiohttp_client: MakeClient, tmp_path: Path) -> None:
    client = await aiohttp_client(make_app(Upper))
    document = await dump(f"http://evil.test:{client.port}/", tmp_path, REBOUND)
    assert "does not go by the name" in document
    assert "service-title" not in document


@needs_browser
async def test_the_attack_works_on_a_page_that_is_allowed(aiohttp_client: MakeClient, tmp_path: Path) -> None:
    """Else the tests above would hold for an attack that never reaches the server."""

    async def page(request: web.Request) -> web.Response:
        target = json.dumps(f"http://127.0.0.1:{client.port}")
        return web.Response(text=ATTACK.replace("TARGET", target), content_type="text/html")

    friend = web.Application()
    friend.router.add_get("/", page)
    async with TestServer(friend) as server:
        origin = f"http://127.0.0.1:{server.port}"
        client = await aiohttp_client(make_app(Upper, server=ServerConfig(grace_s=0.0, allow_origins=(origin,))))
        await loaded(client)
        before = await submitted(client)
        document = await dump(f"{origin}/", tmp_path)
    assert "IN_QUEUE" in document
    assert await submitted(client) > before
