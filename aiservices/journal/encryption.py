"""The part of a request that is written encrypted only: AES-256-GCM, with a random nonce, bound to the job's id."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from aiservices.errors import ConfigError

KEY_VARIABLE = "AISERVICES_JOURNAL_KEY"
KEY_BYTES = 32
NONCE_BYTES = 12
"""The nonce that GCM is made for (NIST SP 800-38D, 5.2.1.1)."""


class SecretBox:
    """Encrypts and decrypts with one key.

    Args:
        key: 32 bytes as base64, as :data:`KEY_VARIABLE` holds them.

    Raises:
        ConfigError: the key has another form, or the package that encrypts is missing. The key is not shown.
    """

    def __init__(self, key: str) -> None:
        try:
            raw = base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != KEY_BYTES:
            raise ConfigError(f"{KEY_VARIABLE}: expected {KEY_BYTES} bytes as base64 (openssl rand -base64 32)")
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise ConfigError(f"{KEY_VARIABLE} needs a package: pip install 'aiservices[journal-key]'") from None
        self._cipher = AESGCM(raw)

    def seal(self, job_id: str, secret: Mapping[str, Any]) -> bytes:
        """Encrypt for that job."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, msgspec.json.encode(secret), job_id.encode())

    def unseal(self, job_id: str, sealed: bytes) -> Mapping[str, Any] | None:
        """Decrypt; None if it was encrypted with another key or for another job."""
        from cryptography.exceptions import InvalidTag

        try:
            plain = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], job_id.encode())
        except InvalidTag:
            return None
        return msgspec.json.decode(plain, type=dict[str, Any])
