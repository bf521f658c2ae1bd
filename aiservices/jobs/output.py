"""What a job made: JSON, and files that stay bytes until a transport writes them."""

from __future__ import annotations

import asyncio
import binascii
from typing import Any

import attrs
import msgspec

ON_LOOP_BYTES = 64 * 1024
"""Encoding more than so many bytes leaves the event loop: 64 KiB of base64 take some 50 µs."""


@attrs.frozen
class OutputFile:
    """A file of an output.

    Attributes:
        name: the output's field.
        media_type: as ``audio/wav``.
    """

    name: str
    media_type: str
    data: bytes = attrs.field(repr=False)


@attrs.define(eq=False)
class JobOutput:
    """The answer of a COMPLETED job.

    Attributes:
        fields: JSON of the answer, without its files.
        files: the files that go along as base64; none once :meth:`encode` has put them into ``fields``.
        size_bytes: of the whole as JSON; the memory that keeping it costs.
    """

    fields: bytes = attrs.field(repr=False)
    files: tuple[OutputFile, ...] = ()
    size_bytes: int = attrs.field(init=False)
    _encoding: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock, repr=False)

    def __attrs_post_init__(self) -> None:
        self.size_bytes = len(self.fields) + sum(len(file.data) * 4 // 3 + len(file.name) for file in self.files)

    def file(self, name: str) -> OutputFile | None:
        """Return a file as bytes; None if there is none of that name."""
        return next((file for file in self.files if file.name == name), None)

    async def encode(self) -> None:
        """Turn the files into base64 in ``fields``, once for all who ask; a large one off the event loop."""
        if self.files and self.size_bytes <= ON_LOOP_BYTES:
            self.fields, self.files = self.as_json(), ()
        if self.files:
            async with self._encoding:
                if self.files:  # nobody encoded it meanwhile
                    self.fields, self.files = await asyncio.to_thread(self.as_json), ()

    def as_json(self) -> bytes:
        """Return the whole answer, files as base64. Heavy for a large one."""
        return _merged(self.files, self.fields) if self.files else self.fields

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as plain values, files as base64 text. Heavy for a large one."""
        shown: dict[str, Any] = msgspec.json.decode(self.fields)
        return {**shown, **{file.name: _base64(file).decode() for file in self.files}}


async def encode_status(shown: dict[str, Any], output: JobOutput | None) -> bytes:
    """Encode a status object, with the output if there is one; a large one off the event loop."""
    parts = await encode_parts(shown, output)
    return parts[0] if len(parts) == 1 else await asyncio.to_thread(b"".join, parts)


async def encode_parts(shown: dict[str, Any], output: JobOutput | None) -> tuple[bytes, ...]:
    """Encode a status object in parts that make it up; a large output is one of them, not copied."""
    if output is None:
        return (msgspec.json.encode(shown),)
    await output.encode()
    if output.size_bytes <= ON_LOOP_BYTES:
        return (msgspec.json.encode({**shown, "output": msgspec.Raw(output.fields)}),)
    before, after = msgspec.json.encode({**shown, "output": None}).rsplit(b"null", 1)
    return before, output.fields, after


def _merged(files: tuple[OutputFile, ...], fields: bytes) -> bytes:
    """JSON of the fields with each file as base64 before them."""
    members = [b'"%s":"%s"' % (file.name.encode(), _base64(file)) for file in files]
    rest = fields[1:-1]
    return b"{%s}" % b",".join([*members, rest] if rest else members)


def _base64(file: OutputFile) -> bytes:
    return binascii.b2a_base64(file.data, newline=False)
