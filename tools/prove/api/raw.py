"""Requests that no HTTP library sends, as bytes; and what must not come back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress

ANSWER_LIMIT_S = 5.0
"""For an answer, or the end of the connection."""

HEAD = b"POST /v2/words/run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
BODY = b'{"input":{"text":"mug"}}'
SIZED = HEAD + b"Content-Length: %d\r\n" % len(BODY)


def _get(target: bytes, *headers: bytes) -> bytes:
    return (
        b"GET " + target + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"".join(each + b"\r\n" for each in headers) + b"\r\n"
    )


MALFORMED: Mapping[str, bytes] = {
    "no method": b" / HTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "an old version": b"GET / HTTP/0.9\r\nHost: a\r\n\r\n",
    "a version of none": b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "zeros": bytes(512) + b"\r\n\r\n",
    "a method of spaces": b"GE T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method of control characters": b"G\x01T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a long method": b"A" * 20_000 + b" / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a long path": _get(b"/" + b"a" * 100_000),
    "a path with NUL": _get(b"/v2/words/status/\x00"),
    "a path with a line": _get(b"/v2/words/status/a%0d%0aX-Injected:%20yes"),
    "a path of bytes": _get(b"/v2/words/status/\xff\xfe"),
    "a path upwards": _get(b"/static/../../../../etc/passwd"),
    "a path upwards in code": _get(b"/static/%2e%2e/%2e%2e/etc/passwd"),
    "an absolute path elsewhere": _get(b"http://example.com/"),
    "a forged line of the log": _get(b"/v2/words/status/a%0a%7b%22event%22:%22forged%22%7d"),
    "a bad escape": _get(b"/v2/words/status/%zz%"),
    "a host with a line": b"GET / HTTP/1.1\r\nHost: a\rX-Injected: yes\r\n\r\n",
    "two hosts": _get(b"/livez", b"Host: b"),
    "no host": b"GET /v2/words/health HTTP/1.1\r\n\r\n",
    "a header without a colon": _get(b"/livez", b"nothing"),
    "a header without a name": _get(b"/livez", b": nothing"),
    "a space before the colon": _get(b"/livez", b"Content-Length : 5"),
    "a folded header": _get(b"/livez", b"A: b", b" c"),
    "NUL in a header": _get(b"/livez", b"A: b\x00c"),
    "a line feed in a header": _get(b"/livez", b"A: b\nX-Injected: yes"),
    "a carriage return in a header": _get(b"/livez", b"A: b\rX-Injected: yes"),
    "a large header": _get(b"/livez", b"A: " + b"a" * 100_000),
    "many headers": _get(b"/livez", *(b"A%d: b" % number for number in range(20_000))),
    "an idempotency key with a line": HEAD + b"Idempotency-Key: a\r\x0bX-Injected: yes\r\nContent-Length: 0\r\n\r\n",
    "a request id with colours": _get(b"/v2/words/health", b"X-Request-Id: \x1b[31mred"),
    "no length": HEAD + b"\r\n",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    "a length with a sign": HEAD + b"Content-Length: +24\r\n\r\n" + BODY,
    "a length in hexadecimal": HEAD + b"Content-Length: 0x18\r\n\r\n" + BODY,
    "a length of other digits": HEAD + "Content-Length: ٢٤\r\n\r\n".encode() + BODY,
    "a vast length": HEAD + b"Content-Length: %d\r\n\r\n" % 2**70 + BODY,
    "a length above the bound": HEAD + b"Content-Length: 9999999999\r\n\r\n" + BODY,
    "two lengths": SIZED + b"Content-Length: 5\r\n\r\n" + BODY,
    "a list of lengths": HEAD + b"Content-Length: 24, 24\r\n\r\n" + BODY,
    "a length and chunks": SIZED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown transfer": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked and identity": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a chunk's size of letters": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY,
    "a negative chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n" + BODY,
    "a vast chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n" + BODY,
    "a chunk that lies": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk with a long extension": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 100_000 + b"\r\n",
    "line feeds alone in chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\n1\n0\n\n",
    "large trailers": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"a" * 100_000 + b"\r\n\r\n",
    "a compressed body": SIZED + b"Content-Encoding: gzip\r\n\r\n" + BODY,
    "a body that is no JSON": HEAD + b"Content-Length: 5\r\n\r\n{nope",
    "a body that is no UTF-8": HEAD + b"Content-Length: 9\r\n\r\n" + b'{"a":"\xff"}',
    "a body of half a surrogate": HEAD + b"Content-Length: 32\r\n\r\n" + b'{"input":{"text":"\\ud800\\ud800"}}'[:32],
    "a deep body": HEAD + b"Content-Length: 200000\r\n\r\n" + b"[" * 200_000,
    "a deep object": HEAD + b"Content-Length: 250000\r\n\r\n" + b'{"a":' * 50_000,
    "a number without end": HEAD + b"Content-Length: 100010\r\n\r\n" + b'{"input":%s}' % (b"9" * 100_000),
    "NaN": HEAD + b"Content-Length: 36\r\n\r\n" + b'{"input":{"text":"a","weight":NaN  }}'[:36],
    "a list": HEAD + b"Content-Length: 2\r\n\r\n[]",
    "another media type": HEAD.replace(b"application/json", b"text/plain") + b"Content-Length: 24\r\n\r\n" + BODY,
    "a media type of none": HEAD.replace(b"application/json", b"/;=\x01") + b"Content-Length: 24\r\n\r\n" + BODY,
    "a charset of none": HEAD.replace(b"json", b"json; charset=nope") + b"Content-Length: 24\r\n\r\n" + BODY,
    "an upgrade": _get(b"/v2/words/health", b"Connection: Upgrade", b"Upgrade: websocket"),
    "an expectation of none": SIZED + b"Expect: wonders\r\n\r\n" + BODY,
    "a proxy's tunnel": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
    "a trace": b"TRACE / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a request behind a bad one": b"nope\r\n\r\n" + _get(b"/livez"),
}  # fmt: skip
"""By what is wrong with them; each has to be answered with a status under 500, 501 or 505, or be hung up on."""

_TOLD = re.compile(rb"aiohttp|python|traceback|\.py\b|/site-packages|^x-injected", re.IGNORECASE | re.MULTILINE)
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_REFUSED = frozenset({501, 505})


SLOW: Mapping[str, bytes] = {
    "head": b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nA: ",
    "body": HEAD + b"Content-Length: 1000000\r\n\r\n",
    "chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n",
}
"""How requests begin that go on with a byte now and then, by what they never end."""


async def linger(host: str, port: int, begin: bytes, pause_s: float) -> float:
    """Go on with a request byte by byte until the server hangs up; the seconds until then."""
    reader, writer = await asyncio.open_connection(host, port)
    began = asyncio.get_running_loop().time()
    with suppress(ConnectionError):
        writer.write(begin)
        ended = asyncio.create_task(reader.read())
        while not ended.done():
            writer.write(b"a")
            await writer.drain()
            await asyncio.wait([ended], timeout=pause_s)
        await ended
    writer.close()
    return asyncio.get_running_loop().time() - began


async def send(host: str, port: int, request: bytes) -> bytes | None:
    """Send bytes and the end; return what came until the server hung up, None if it did not do so in time."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            with suppress(ConnectionError):
                writer.write(request)
                await writer.drain()
                writer.write_eof()
                return await reader.read()
            return b""
    except TimeoutError:
        return None
    finally:
        writer.close()


def complaint(answer: bytes | None) -> str:
    """Say what an answer must not be; empty: nothing."""
    if answer is None:
        return f"neither answered nor hung up on within {ANSWER_LIMIT_S:.0f} s"
    if told := _TOLD.search(answer):
        return f"the answer tells {told[0]!r}"
    bad = [status for each in _STATUS.findall(answer) if (status := int(each)) >= 500 and status not in _REFUSED]
    return f"answered {bad[0]}" if bad else ""
