from __future__ import annotations

import asyncio

import pytest

from tools.prove.api.__main__ import forged, main
from tools.prove.api.raw import MALFORMED, complaint, send

pytest.importorskip("schemathesis", reason="pip install schemathesis")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "neither answered nor hung up on"),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", "answered 500"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\nHTTP/1.1 503 Service Unavailable\r\n\r\n", "answered 503"),
        (b"HTTP/1.1 400 Bad Request\r\nServer: Python/3.11 aiohttp/3.14\r\n\r\n", "Python"),
        (b"HTTP/1.1 404 Not Found\r\nX-Injected: yes\r\n\r\n", "X-Injected"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\nTraceback (most recent call last)", "Traceback"),
    ],
)
def test_an_answer_that_should_not_be_is_found(answer: bytes | None, said: str) -> None:
    assert said in complaint(answer)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"HTTP/1.0 501 Not Implemented\r\n\r\n"])
def test_hanging_up_and_refusing_are_right(answer: bytes) -> None:
    assert complaint(answer) == ""


def test_a_forged_line_of_the_log_is_found() -> None:
    log = b'{"event":"job.ended"}\nnot found: a\n{"event":"forged"}\n[]\n'
    assert len([*forged(log)]) == 3


def test_there_are_many_ways_to_be_malformed() -> None:
    assert len(set(MALFORMED.values())) == len(MALFORMED) >= 60


async def test_a_server_that_answers_wrongly_is_found() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(b"HTTP/1.1 500 Oops\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        assert complaint(await send(host, port, MALFORMED["not HTTP"])) == "answered 500"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_short_form_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--minutes", "0", "--examples", "10", "--connections", "60"]) == 0, capsys.readouterr().out
