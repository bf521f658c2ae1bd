"""The two sides of a socket between this process and a child: a small JSON header, then raw bytes.

No pickle: the child may have been taken over by what it decoded.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import msgspec

MAX_HEADER_BYTES = 64 * 1024
"""Arguments and the shape of a result are far smaller; a traceback is cut to fit."""
_LENGTHS = struct.Struct("!IQ")


class Broken(Exception):
    """The other side is gone, or sent what it may not."""


def send(connection: socket.socket, header: dict[str, Any], body: bytes | bytearray | memoryview) -> None:
    """Send one message.

    Raises:
        OSError: the other side is gone.
    """
    head = msgspec.json.encode(header)
    connection.sendall(_LENGTHS.pack(len(head), len(body)) + head)
    connection.sendall(body)


def receive(connection: socket.socket, *, max_bytes: int) -> tuple[dict[str, Any], bytearray]:
    """Receive one message, at most ``max_bytes`` behind its header.

    Raises:
        Broken: the other side is gone, or the message is larger or no JSON.
    """
    head_bytes, body_bytes = _LENGTHS.unpack(_read(connection, _LENGTHS.size))
    if head_bytes > MAX_HEADER_BYTES or body_bytes > max_bytes:
        raise Broken(f"a message of {head_bytes} and {body_bytes} bytes")
    head = _read(connection, head_bytes)
    try:
        header = msgspec.json.decode(head, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Broken(f"a header that is no JSON: {error}") from error
    return header, _read(connection, body_bytes)


def _read(connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        try:
            got = connection.recv_into(view)
        except OSError as error:
            raise Broken(str(error)) from error
        if not got:
            raise Broken("the other side is gone")
        view = view[got:]
    return data
