"""What schemathesis may not send, since no schema can say it; loaded by schemathesis, not by us."""

from __future__ import annotations

import re
from typing import Any

import schemathesis

STORE = "https://store.test"
_NAMED = re.compile(r"https?://[^/:]*[A-Za-z]", re.IGNORECASE)


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Write numbers so that every reader takes them, and name stores, since most numeric addresses are not public."""
    if isinstance(body, dict):
        store = body.get("s3Config")
        if isinstance(store, dict) and isinstance(url := store.get("endpointUrl"), str) and not _NAMED.match(url):
            body["s3Config"] = {**store, "endpointUrl": STORE}
    return whole(body)


def whole(value: Any) -> Any:
    """Write whole numbers without a point and in 64 bits: JSON Schema knows no such bounds, readers of JSON do."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return value % 2**63
    if isinstance(value, dict):
        return {name: whole(each) for name, each in value.items()}
    return [whole(each) for each in value] if isinstance(value, list) else value
