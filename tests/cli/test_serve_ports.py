"""The ports that RunPod's load balancer sets for a worker behind it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import aiohttp
import pytest
from aiohttp.test_utils import unused_port

from aiservices.cli import Exit, build_parser
from aiservices.cli import serve as command
from aiservices.errors import ConfigError
from aiservices.settings import Config, ServerConfig, ServiceConfig
from tests.fakes import Upper

LOADED = threading.Event()


class LoadsLater(Upper):
    """Is loaded when the test says so."""

    def load(self, *arguments: object) -> None:
        assert LOADED.wait(10)


async def test_ping_answers_on_both_ports_204_while_loading_and_200_after() -> None:
    LOADED.clear()
    service = ServiceConfig(name="upper", handler="tests.cli.test_serve_ports:LoadsLater", device="cpu")
    port, health_port = unused_port(), unused_port()
    config = Config(server=ServerConfig(port=port, grace_s=0), profile="test", services={"upper": service})
    listening = asyncio.Event()
    task = asyncio.create_task(command.serve(config, say=lambda line: listening.set(), health_port=health_port))
    await listening.wait()
    async with aiohttp.ClientSession() as session:

        async def ask(port: int) -> int:
            async with session.get(f"http://127.0.0.1:{port}/ping") as answer:
                return answer.status

        assert [await ask(port), await ask(health_port)] == [204, 204]
        LOADED.set()
        warmup = {"input": {"action": "warmup"}}
        async with session.post(f"http://127.0.0.1:{port}/upper/runsync", json=warmup) as answer:
            assert (await answer.json())["status"] == "COMPLETED"
        assert [await ask(port), await ask(health_port)] == [200, 200]
    os.kill(os.getpid(), signal.SIGTERM)
    assert await task is Exit.OK


@pytest.mark.parametrize(
    ("environ", "arguments", "port", "health_port"),
    [
        ({"PORT": "8080", "PORT_HEALTH": "8081"}, [], 8080, 8081),
        ({"PORT": "8080"}, ["--port", "9000"], 9000, None),
        ({"PORT": "8080", "AISERVICES_PORT": "9001"}, [], 9001, None),
        ({"PORT_HEALTH": "8081"}, [], 8001, 8081),
    ],
)
def test_the_nearer_setting_of_the_port_wins(
    environ: dict[str, str],
    arguments: list[str],
    port: int,
    health_port: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, int | None]] = []

    async def serve(config: Config, *, say: object, health_port: int | None = None, **others: object) -> Exit:
        seen.append((config.server.port, health_port))
        return Exit.OK

    monkeypatch.setattr(command, "serve", serve)
    monkeypatch.setattr(command, "configure_logging", lambda *settings: None)
    assert command.run(build_parser().parse_args(["serve", *arguments]), environ) is Exit.OK
    assert seen == [(port, health_port)]


@pytest.mark.parametrize("text", ["web", "0", "70000", "-1"])
def test_what_is_no_port_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="environment: PORT_HEALTH: expected a port from 1 to 65535"):
        command.read_ports({"PORT_HEALTH": text})
