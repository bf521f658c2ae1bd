"""GET requests for the bodies of objects: botocore's own blocking HTTP, with URLs that were signed beforehand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from aiservices.settings import S3Config

MAX_ERROR_BYTES = 64 * 1024
"""How much is read of a body that says why a request was refused."""


def open_http(settings: S3Config, endpoint_url: str) -> Any:
    """Open a pool of connections, with the proxies and certificates that AWS tools take from the environment."""
    from botocore.httpsession import URLLib3Session
    from botocore.session import get_session
    from botocore.utils import get_environ_proxies

    return URLLib3Session(
        verify=get_session().get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE", True),
        proxies=get_environ_proxies(endpoint_url),
        timeout=(settings.connect_timeout_s, settings.read_timeout_s),
        max_pool_connections=settings.max_concurrency,
    )


def get(http: Any, url: str, headers: Mapping[str, str]) -> Any:
    """Send a GET; the caller reads the body from the response's ``raw``. Blocking.

    Args:
        url: with its signature, which is a secret for as long as it is valid.

    Raises:
        ClientError: the store refused.
        BotoCoreError: there was no response; the error's text does not contain the signature.
    """
    from botocore.awsrequest import AWSRequest
    from botocore.exceptions import BotoCoreError

    request = AWSRequest("GET", url, headers=headers)
    request.stream_output = True
    try:
        response = http.send(request.prepare())
    except BotoCoreError as error:
        secret = urlsplit(url).query
        kept = {name: str(value).replace(secret, "…") for name, value in error.kwargs.items()}
        raise type(error)(**kept) from None
    if response.status_code >= 300:
        raise _refusal(response)
    return response


def release(response: Any, *, reusable: bool) -> None:
    """Return the connection to its pool, or close it if the body was not read to its end."""
    if reusable:
        response.raw.release_conn()
    else:
        response.raw.close()


def _refusal(response: Any) -> Exception:
    from botocore.exceptions import ClientError
    from botocore.parsers import RestXMLParser

    try:
        body = response.raw.read(MAX_ERROR_BYTES)
    finally:
        release(response, reusable=False)
    parts = {"status_code": response.status_code, "headers": response.headers, "body": body}
    error: Exception = ClientError(RestXMLParser().parse(parts, None), "GetObject")
    return error
