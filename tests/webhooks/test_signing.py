"""Signatures, verified by the specification's own library; and the secrets that are refused."""

from __future__ import annotations

import base64
import builtins
import time
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from standardwebhooks import Webhook, WebhookVerificationError

from aiservices.errors import ConfigError
from aiservices.webhooks import SigningKeys, message_id, public_key

BODY = b'{"id":"1","status":"COMPLETED"}'
MESSAGE = message_id("1", 1)
OLD, NEW = ("whsec_" + base64.b64encode(bytes([each]) * 24).decode() for each in (1, 2))
SEED = bytes(range(32))
PRIVATE = Ed25519PrivateKey.from_private_bytes(SEED)
PUBLIC_BYTES = PRIVATE.public_key().public_bytes_raw()


def whsk(key: bytes) -> str:
    return "whsk_" + base64.b64encode(key).decode()


def headers(*secrets: str, body: bytes = BODY) -> dict[str, str]:
    return SigningKeys(secrets).headers(MESSAGE, int(time.time()), body)


def test_the_specifications_library_verifies_a_message() -> None:
    assert Webhook(OLD).verify(BODY, headers(OLD)) == {"id": "1", "status": "COMPLETED"}


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_it_refuses_a_message_with_any_header_changed(name: str) -> None:
    changed = headers(OLD)
    changed[name] = headers(NEW)[name] if name == "webhook-signature" else changed[name][:-1] + "x"
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(BODY, changed)


def test_it_refuses_another_body() -> None:
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(BODY + b" ", headers(OLD))


@pytest.mark.parametrize("theirs", [OLD, NEW])
def test_while_keys_are_exchanged_receivers_with_either_verify(theirs: str) -> None:
    Webhook(theirs).verify(BODY, headers(NEW, whsk(SEED), OLD))


def test_the_example_of_the_library_signs_to_the_same() -> None:
    """The values of the test in https://github.com/standard-webhooks/standard-webhooks, libraries/python."""
    keys = SigningKeys(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    made = keys.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("key", [SEED, SEED + PUBLIC_BYTES], ids=["seed", "seed and public key"])
def test_an_ed25519_key_signs_what_its_public_key_verifies_and_no_other_content(key: bytes) -> None:
    made = headers(whsk(key))
    version, _, signature = made["webhook-signature"].partition(",")
    assert version == "v1a"
    public = base64.b64decode(public_key(whsk(key)).removeprefix("whpk_"))
    content = f"{MESSAGE}.{made['webhook-timestamp']}.".encode() + BODY
    Ed25519PublicKey.from_public_bytes(public).verify(base64.b64decode(signature), content)
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(public).verify(base64.b64decode(signature), content + b" ")


def test_without_secrets_a_message_has_its_id_and_time_alone() -> None:
    assert SigningKeys([]).headers(MESSAGE, 17, BODY) == {"webhook-id": "msg_1_1", "webhook-timestamp": "17"}


REFUSED = {
    "short": (
        "whsec_" + base64.b64encode(b"s" * 23).decode(),
        "expected 24 to 64 bytes in base64 after 'whsec_', got 23",
    ),
    "long": (
        "whsec_" + base64.b64encode(b"s" * 65).decode(),
        "expected 24 to 64 bytes in base64 after 'whsec_', got 65",
    ),
    "no prefix": ("hunter2hunter2hunter2hunter2hunter2", "expected 'whsec_' or 'whsk_' and base64"),
    "no base64": ("whsec_hunter2!", "expected 'whsec_' or 'whsk_' and base64"),
    "a public key": ("whpk_" + base64.b64encode(SEED).decode(), "expected 'whsec_' or 'whsk_' and base64"),
    "short ed25519": (whsk(b"s" * 31), "expected an ed25519 key of 32 or 64 bytes after 'whsk_', got 31"),
    "two halves": (whsk(SEED + SEED), "the two halves of the ed25519 key do not belong together"),
}


@pytest.mark.parametrize(("secret", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_secret_of_no_right_form_is_refused_by_its_place_and_not_shown(secret: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SigningKeys([OLD, secret])
    assert str(caught.value) == f"[webhook] secrets[1]: {reason}"


def test_an_ed25519_key_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    SigningKeys([OLD])
    with pytest.raises(ConfigError, match=r"\[0\]: a 'whsk_' key needs the package cryptography \(extra 'webhooks'\)"):
        SigningKeys([whsk(SEED)])
