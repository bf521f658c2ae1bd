"""The POST that tells a caller's server that a job has ended: signed, tried again, bounded per receiver and tenant."""

from aiservices.webhooks.delivery import WebhookResult
from aiservices.webhooks.sender import Poster, WebhookSender
from aiservices.webhooks.signing import SigningKeys, message_id, public_key

__all__ = ["Poster", "SigningKeys", "WebhookResult", "WebhookSender", "message_id", "public_key"]
