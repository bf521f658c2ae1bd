from __future__ import annotations

import attrs
import pytest

from aiservices.errors import ServiceError
from aiservices.storage.s3.remote import RemoteObject, check_path, fingerprint, parse_manifest, write_manifest


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "a//x", "./x", "a\0", "..", "a\\b", "x" * 256, "a\nb"])
def test_a_key_that_leaves_the_folder_is_refused(path: str) -> None:
    with pytest.raises(ServiceError, match="cannot be a file below the model's folder; nothing was downloaded"):
        check_path(path)


def test_any_change_gives_another_fingerprint() -> None:
    one, other = RemoteObject("a", 1, "e"), RemoteObject("b", 1, "e")
    changed = [attrs.evolve(one, size=2), attrs.evolve(one, etag="f")]
    listings = [[one], [other], [changed[0]], [changed[1]], [one, other]]
    assert len({fingerprint(objects) for objects in listings}) == len(listings)
    assert fingerprint([one, other]) == fingerprint([other, one])


def test_a_manifest_reads_as_it_was_written_and_as_sha256sum_writes() -> None:
    sums = {"a b.json": "0" * 64, "sub/c": "f" * 64}
    assert parse_manifest(write_manifest(sums)) == sums
    assert parse_manifest(f"{'a' * 64} *./x\nno sum\n") == {"x": "a" * 64}
