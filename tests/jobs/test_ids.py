from __future__ import annotations

import uuid

from aiservices.jobs.ids import new_id


def test_ids_are_random_uuids_and_never_come_twice() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    for text in ids:
        assert str(uuid.UUID(text)) == text
        assert uuid.UUID(text).version == 4
        assert uuid.UUID(text).variant == uuid.RFC_4122
    assert {text[19] for text in ids} == set("89ab")
