"""What a caller asked for: one object from the body to the job."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

import attrs
import msgspec
from msgspec import Meta

from aiservices.callers import ANYONE, Caller
from aiservices.trace import Trace

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HOST = rf"(({_LABEL}\.)*[A-Za-z]([A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?|{_OCTET}(\.{_OCTET}){{3}}|\[[0-9A-Fa-f:.]+\])"
_PORT = r"(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
_URL_PATTERN = rf"^[Hh][Tt][Tt][Pp][Ss]?://(?![A-Za-z0-9._-]{{254}}){_HOST}(:{_PORT})?(/[A-Za-z0-9._~/-]*)?$"
"""Told to callers only: what is checked, and more, is the URL's address where it is asked."""


class Destination(msgspec.Struct, frozen=True, rename="camel"):
    """RunPod's ``s3Config``: the caller's own bucket for this job's files."""

    access_id: Annotated[str, Meta(min_length=1, max_length=256)]
    access_secret: Annotated[str, Meta(min_length=1, max_length=1024)]
    bucket_name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$", description="Name of the bucket.")]
    endpoint_url: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=1024,
            description="The store, as an http or https URL.",
            extra_json_schema={"format": "uri", "pattern": _URL_PATTERN},
        ),
    ]
    object_path: Annotated[str, Meta(max_length=512, description="Folder in the bucket.")] = ""

    def __repr__(self) -> str:
        return f"Destination({self.bucket_name!r})"  # never the keys


@attrs.define(eq=False, kw_only=True)
class JobRequest:
    """A caller's wish, as a transport read it; the service puts the checked input in the place of the raw one.

    Attributes:
        input: the JSON object for the handler, then the handler's ``Input``; None once nobody needs it any more.
        input_bytes: size of the request; counts against ``queue_bytes``.
        timeout_s: how long the job may run once the model took it; None takes the service's limit.
        ttl_s: how long it may wait in the queue, from submission; None takes the service's limit.
        low_priority: whether it waits behind every job of normal priority.
        webhook: URL that gets the status object when the job ends.
        destination: the caller's bucket for the files of the output.
        stream_bytes: bound on the unread stream; None takes the service's.
        idempotency_key: the same key and request get the same job.
        request_id: of the request that asked for it, for the log.
        trace: the caller's, where it gave one.
        fingerprint: digest of the request, see :func:`fingerprint`; compared where there is a key.
        caller: who asked; the job is its tenant's.
    """

    input: Any
    input_bytes: int = 0
    timeout_s: float | None = None
    ttl_s: float | None = None
    low_priority: bool = False
    webhook: str | None = None
    destination: Destination | None = None
    stream_bytes: int | None = None
    idempotency_key: str | None = None
    request_id: str = ""
    trace: Trace | None = None
    fingerprint: bytes = b""
    caller: Caller = ANYONE
    is_warmup: bool = attrs.field(init=False)
    """Whether it is ``{"action": "warmup"}``, which loads the model and runs nothing."""

    def __attrs_post_init__(self) -> None:
        self.is_warmup = self.input.get("action") == "warmup"

    @property
    def queue_class(self) -> int:
        """Which jobs go first, the smaller number before the larger: warm-ups, normal, low priority."""
        return 0 if self.is_warmup else 2 if self.low_priority else 1

    def forget_input(self) -> None:
        """Let go of what only a run needs."""
        self.input, self.input_bytes, self.destination = None, 0, None


def fingerprint(document: Mapping[str, Any]) -> bytes:
    """Digest a body so that two requests with one idempotency key can be told apart. Heavy for a large one."""
    return hashlib.blake2b(msgspec.json.encode(document, order="deterministic"), digest_size=16).digest()
