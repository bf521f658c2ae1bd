from __future__ import annotations

import hashlib

from aiservices.storage.s3.checksum import etag_of_parts, usual_part_bytes
from tests.storage.s3.samples import MIB


def test_the_part_size_of_common_uploaders_is_guessed() -> None:
    assert usual_part_bytes(1024 * MIB, 128) == 8 * MIB
    assert usual_part_bytes(20 * MIB, 2) == 16 * MIB
    assert usual_part_bytes(1000, 7) is None


def test_the_etag_of_parts_is_what_s3_computes() -> None:
    digests = [hashlib.md5(part).digest() for part in (b"a", b"b")]
    assert etag_of_parts(digests) == hashlib.md5(b"".join(digests)).hexdigest() + "-2"
