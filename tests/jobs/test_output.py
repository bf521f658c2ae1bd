from __future__ import annotations

import base64
import json
import threading
from typing import Any

import msgspec
import pytest

from aiservices.jobs import JobOutput, OutputFile
from aiservices.jobs import output as module
from aiservices.jobs.output import ON_LOOP_BYTES, encode_parts, encode_status

SOUND = OutputFile("audio", "audio/wav", b"RIFF" + bytes(1000))


@pytest.mark.parametrize("fields", [b"{}", b'{"voice":"anna"}'])
def test_files_become_base64_where_the_json_is_written(fields: bytes) -> None:
    output = JobOutput(fields, (SOUND,))
    expected = {**json.loads(fields), "audio": base64.b64encode(SOUND.data).decode()}
    assert json.loads(output.as_json()) == output.as_dict() == expected
    assert abs(output.size_bytes - len(output.as_json())) < 32
    assert output.file("audio") is SOUND
    assert output.file("picture") is None


async def test_encoding_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    output, made = JobOutput(b"{}", (SOUND,)), list[OutputFile]()
    encode = module._base64

    def noted(file: OutputFile) -> bytes:
        made.append(file)
        return encode(file)

    monkeypatch.setattr(module, "_base64", noted)
    size_bytes = output.size_bytes
    shown = [await encode_status({"id": "x"}, output) for _ in range(3)]
    assert len({*shown}) == len(made) == 1
    assert output.size_bytes == size_bytes
    assert json.loads(shown[0])["output"]["audio"] == base64.b64encode(SOUND.data).decode()


@pytest.mark.parametrize(("size", "on_loop"), [(10, True), (2 * ON_LOOP_BYTES, False)])
async def test_a_large_output_is_encoded_off_the_loop(
    size: int, on_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = list[int]()
    merge = module._merged

    def noted_merge(*args: Any) -> bytes:
        threads.append(threading.get_ident())
        return merge(*args)

    monkeypatch.setattr(module, "_merged", noted_merge)
    await encode_status({"id": "x"}, JobOutput(b"{}", (OutputFile("audio", "audio/wav", bytes(size)),)))
    assert len(threads) == 1
    assert all((thread == threading.get_ident()) is on_loop for thread in threads)


@pytest.mark.parametrize("shown", [{"id": "x"}, {"id": "null", "status": '"output":null'}, {}])
async def test_a_large_output_is_a_part_of_its_own(shown: dict[str, Any]) -> None:
    output = JobOutput(msgspec.json.encode({"text": "null" * ON_LOOP_BYTES}))
    parts = await encode_parts(shown, output)
    assert any(part is output.fields for part in parts)
    assert b"".join(parts) == await encode_status(shown, output)
    assert json.loads(b"".join(parts)) == {**shown, "output": {"text": "null" * ON_LOOP_BYTES}}
