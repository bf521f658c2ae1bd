"""Which pages and which names may reach a server without keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiservices.settings import ServerConfig
from tests.fakes import Upper
from tests.transports.http.apps import Client, MakeClient, make_app, read

KEYS = ("secret",)
FRIEND = "https://app.example.com"
PURGE = "/v2/upper/purge-queue"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(
            ("127.0.0.1:8001", 200),
            ("localhost", 200),
            ("[::1]:8001", 200),
            ("LocalHost.:1", 200),
            ("a.localhost", 200),
        ),
        *(("10.0.0.7", 200), ("evil.test", 421), ("evil.test:8001", 421), ("127.0.0.1.evil.test", 421), ("", 421)),
        *(("localhost.evil.test", 421), ("evil.test@127.0.0.1", 421), ("[evil.test]", 421)),
    ],
)
@pytest.mark.parametrize("path", ["/", "/livez", "/v2/upper/health", "/metrics"])
async def test_an_open_server_on_loopback_goes_by_its_own_names(
    aiohttp_client: MakeClient, path: str, host: str, status: int
) -> None:
    client = await aiohttp_client(make_app(Upper))
    assert (await client.get(path, headers={"Host": host})).status == status


@pytest.mark.parametrize(
    ("server", "status"),
    [
        (ServerConfig(hosts=("models.test",)), 200),
        (ServerConfig(hosts=("models.test",), api_keys=KEYS, host="0.0.0.0"), 200),
        (ServerConfig(hosts=("other.test",), host="0.0.0.0"), 421),
        (ServerConfig(hosts=("other.test",), api_keys=KEYS), 421),
        (ServerConfig(api_keys=KEYS), 200),
        (ServerConfig(host="0.0.0.0"), 200),
        (ServerConfig(host="models.test"), 200),
    ],
)
async def test_more_names_are_a_setting(aiohttp_client: MakeClient, server: ServerConfig, status: int) -> None:
    client = await aiohttp_client(make_app(Upper, server=server))
    assert (await client.get("/livez", headers={"Host": "Models.test:80"})).status == status


async def test_a_foreign_name_is_answered_in_clear_words(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    shown = await read(await client.post(PURGE, headers={"Host": "evil.test"}), 421)
    assert list(shown) == ["error"]
    assert "[server] hosts" in shown["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://proxied.test"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "{own}"}, 403),
        ({"Sec-Fetch-Site": "new-word"}, 403),
        ({"Origin": "{own}"}, 200),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.test"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": ""}, 403),
    ],
)
async def test_only_the_own_page_may_post_to_an_open_server(
    aiohttp_client: MakeClient, headers: dict[str, str], status: int
) -> None:
    client = await aiohttp_client(make_app(Upper))
    own = f"http://127.0.0.1:{client.port}"
    sent = {name: value.format(own=own) for name, value in headers.items()}
    assert (await client.post(PURGE, headers=sent)).status == status
    assert (await client.get("/livez", headers=sent)).status == 200


@pytest.mark.parametrize(
    ("kind", "from_page", "status"),
    [
        ("application/json", True, 200),
        ("application/json; charset=utf-8", True, 200),
        *((kind, True, 415) for kind in ("text/plain", "Text/Plain; x=json", "application/x-www-form-urlencoded", "")),
        *((kind, False, 200) for kind in ("text/plain", "application/x-www-form-urlencoded", "")),
    ],
)
async def test_a_page_says_that_it_posts_json(
    aiohttp_client: MakeClient, kind: str, from_page: bool, status: int
) -> None:
    client = await aiohttp_client(make_app(Upper))
    headers = {"Content-Type": kind, **({"Origin": f"http://127.0.0.1:{client.port}"} if from_page else {})}
    answer = await client.post("/v2/upper/run", data=b'{"input": {"text": "x"}}', headers=headers)
    assert answer.status == status


async def test_where_keys_are_needed_the_key_decides(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, server=ServerConfig(api_keys=KEYS)))
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.test"}
    assert (await client.post(PURGE, headers=headers)).status == 401
    assert (await client.post(PURGE, headers={**headers, "Authorization": "Bearer secret"})).status == 200


async def preflight(client: Client, origin: str) -> tuple[int, dict[str, str]]:
    asks = {"Origin": origin, "Sec-Fetch-Site": "cross-site", "Access-Control-Request-Method": "POST"}
    answer = await client.options("/v2/upper/run", headers=asks)
    return answer.status, {name: value for name, value in answer.headers.items() if name.startswith("Access-Control")}


@pytest.mark.parametrize("keys", [(), KEYS])
async def test_allowed_origins_may_call_and_read(aiohttp_client: MakeClient, keys: tuple[str, ...]) -> None:
    client = await aiohttp_client(make_app(Upper, server=ServerConfig(allow_origins=(FRIEND,), api_keys=keys)))
    status, told = await preflight(client, FRIEND)
    assert (status, told["Access-Control-Allow-Origin"]) == (204, FRIEND)
    assert "Authorization" in told["Access-Control-Allow-Headers"]
    headers = {"Origin": FRIEND, "Sec-Fetch-Site": "cross-site", "Authorization": "Bearer secret"}
    answer = await client.post(PURGE, headers=headers)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, FRIEND)
    assert answer.headers["Vary"] == "Origin"
    assert (await client.get("/nope", headers=headers)).headers["Access-Control-Allow-Origin"] == FRIEND


@pytest.mark.parametrize("allowed", [(), (FRIEND,)])
async def test_other_origins_are_told_nothing(aiohttp_client: MakeClient, allowed: tuple[str, ...]) -> None:
    client = await aiohttp_client(make_app(Upper, server=ServerConfig(allow_origins=allowed)))
    assert await preflight(client, "https://evil.test") == (403, {})
    answer = await client.get("/v2/upper/health", headers={"Origin": "https://evil.test"})
    assert not [name for name in answer.headers if name.startswith("Access-Control")]


async def test_behind_a_proxy_a_file_of_keys_is_as_good_as_plain_ones(
    aiohttp_client: MakeClient, tmp_path: Path
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('[tenants.shop.keys.backend]\nkey = "0123456789abcdef"\n', encoding="utf-8")
    client = await aiohttp_client(make_app(Upper, server=ServerConfig(keys_file=str(file))))
    headers = {"Host": "models.test", "Origin": "https://shop.test", "Authorization": "Bearer 0123456789abcdef"}
    assert (await client.post(PURGE, headers=headers)).status == 200


async def test_names_are_the_same_in_any_case(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, server=ServerConfig(hosts=("Models.Test",))))
    assert (await client.get("/livez", headers={"Host": "models.test"})).status == 200
