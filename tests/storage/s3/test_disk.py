from __future__ import annotations

import os
from pathlib import Path

from aiservices.storage.s3.disk import preallocate
from tests.storage.s3.samples import MIB


def test_disk_space_is_preallocated_where_the_file_system_can(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        preallocate(file.fileno(), MIB)
    assert (tmp_path / "large").stat().st_size == MIB
    assert (tmp_path / "large").stat().st_blocks * 512 >= MIB
    reading, writing = os.pipe()  # neither can preallocate
    preallocate(writing, MIB)
    os.close(reading)
    os.close(writing)
