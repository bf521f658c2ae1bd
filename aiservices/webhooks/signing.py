"""Signatures of webhooks by the Standard Webhooks specification.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md: what is signed is
``id.timestamp.body``; a ``whsec_`` secret signs by HMAC-SHA256 (``v1``), a ``whsk_`` key by ed25519 (``v1a``). Whoever
verifies ``v1`` could forge it; whoever verifies ``v1a`` holds the public key alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from aiservices.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"

OLD_SIGNATURE_HEADER = "X-Aiservices-Signature"
"""Our own header from before the specification; goes with ``[webhook] secret`` in the release after this one."""
OLD_TIMESTAMP_HEADER = "X-Aiservices-Timestamp"

MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
"""Of a ``whsec_`` secret, decoded; by the specification."""

_SEED_BYTES = 32  # of ed25519; libraries write the seed alone, or the seed and then the public key (RFC 8032)

_Sign = Callable[[bytes], str]


class SigningKeys:
    """The keys of one sender: each message is signed by all of them, so that keys can be exchanged without a gap.

    Args:
        secrets: ``whsec_…`` and ``whsk_…``, as in ``[webhook] secrets``.
        old_secret: ``[webhook] secret``, for the header from before the specification alone.
        where: names the setting in errors.

    Raises:
        ConfigError: naming the place of a secret that has no right form, never the secret.
    """

    def __init__(self, secrets: Sequence[str], old_secret: str = "", *, where: str = "[webhook] secrets") -> None:
        self._signs = [_read(secret, f"{where}[{place}]") for place, secret in enumerate(secrets)]
        self._old_secret = old_secret.encode()

    def headers(self, message: str, timestamp_s: int, body: bytes) -> dict[str, str]:
        """Return the headers of one attempt; without keys those that name it, unsigned. Hashes the body.

        Args:
            message: the id, the same for all attempts at one delivery.
            timestamp_s: of this attempt, seconds since the epoch.
            body: the raw body.
        """
        headers = {ID_HEADER: message, TIMESTAMP_HEADER: str(timestamp_s)}
        if self._signs:
            content = f"{message}.{timestamp_s}.".encode() + body
            headers[SIGNATURE_HEADER] = " ".join(sign(content) for sign in self._signs)
        if self._old_secret:
            digest = hmac.new(self._old_secret, b"%d." % timestamp_s, hashlib.sha256)
            digest.update(body)
            headers[OLD_TIMESTAMP_HEADER] = str(timestamp_s)
            headers[OLD_SIGNATURE_HEADER] = f"sha256={digest.hexdigest()}"
        return headers


def message_id(job_id: str, attempt: int) -> str:
    """Return the ``webhook-id`` of a job's end: the same over all tries and restarts, another for a retried job."""
    return f"msg_{job_id}_{attempt}"


def public_key(secret: str) -> str:
    """Return what receivers verify ``v1a`` with: the ``whpk_`` key of a ``whsk_`` key.

    Raises:
        ConfigError: it is no ``whsk_`` key, or ``cryptography`` is not installed.
    """
    key = _ed25519(_decode(secret, "whsk_", "the key"), "the key")
    return "whpk_" + base64.b64encode(key.public_key().public_bytes_raw()).decode()


def _read(secret: str, where: str) -> _Sign:
    if secret.startswith("whsk_"):
        private = _ed25519(_decode(secret, "whsk_", where), where)
        return lambda content: "v1a," + base64.b64encode(private.sign(content)).decode()
    key = _decode(secret, "whsec_", where)
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        bounds = f"{MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes"
        raise ConfigError(f"{where}: expected {bounds} in base64 after 'whsec_', got {len(key)}")
    return lambda content: "v1," + base64.b64encode(hmac.digest(key, content, "sha256")).decode()


def _decode(secret: str, prefix: str, where: str) -> bytes:
    text = secret.removeprefix(prefix)
    try:
        if text == secret:
            raise ValueError
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error):
        raise ConfigError(f"{where}: expected 'whsec_' or 'whsk_' and base64") from None


def _ed25519(key: bytes, where: str) -> Ed25519PrivateKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # heavy
    except ImportError:
        raise ConfigError(f"{where}: a 'whsk_' key needs the package cryptography (extra 'webhooks')") from None
    if len(key) not in (_SEED_BYTES, 2 * _SEED_BYTES):
        raise ConfigError(f"{where}: expected an ed25519 key of 32 or 64 bytes after 'whsk_', got {len(key)}")
    private = Ed25519PrivateKey.from_private_bytes(key[:_SEED_BYTES])
    if key[_SEED_BYTES:] not in (b"", private.public_key().public_bytes_raw()):
        raise ConfigError(f"{where}: the two halves of the ed25519 key do not belong together")
    return private
