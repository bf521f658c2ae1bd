"""The text of a caller's URL: parsed strictly, and refused where the text alone tells that it is forbidden."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import attrs
from yarl import URL

from aiservices.fetch.addresses import AllowList, literal_address
from aiservices.fetch.refusal import Failure, FetchResult, Refusal

_MAX_URL_CHARS = 8192
_HEAD = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,31}):(?://(?P<authority>[^/?#]*))?")
_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:%]+)(?::[0-9]{1,5})?", re.ASCII)
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_UNQUOTED = re.compile(r"[^A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]|%(?![0-9A-Fa-f]{2})")


@attrs.frozen
class Target:
    """A URL that may be connected as far as its text tells."""

    url: URL
    host: str
    port: int


def host_of(url: str) -> str:
    """Return the part of a URL that may be logged: its host; ``data:`` or ``?`` where there is none."""
    if url[:5].lower() == "data:":
        return "data:"
    try:
        return _parse(url).host
    except Failure:
        return "?"


def check_url(url: str, allowed: AllowList) -> Target:
    """Check what the text alone tells; the addresses of a name are checked when it is looked up.

    Raises:
        Refusal: scheme, form, user name, or a literal address (or ``localhost``) that may not be connected.
    """
    target = _parse(url)
    address = literal_address(target.host)
    if address is not None:
        # Seen again where the socket is made; refused here, it is refused at submission.
        permitted = allowed.permits(address, target.port)
    else:
        local = target.host == "localhost" or target.host.endswith(".localhost")  # RFC 6761, section 6.3
        permitted = not local or allowed.covers_host(target.host, target.port)
    if not permitted:
        raise Refusal("points to a private address")
    return target


def _parse(text: str) -> Target:
    if len(text) > _MAX_URL_CHARS:
        raise Refusal(f"is longer than {_MAX_URL_CHARS} characters")
    if _UNSAFE.search(text):
        raise Refusal("holds a space, a control character or a backslash")
    head = _HEAD.match(text)
    if head is None:
        raise Refusal("is not a URL with a scheme")
    if (scheme := head["scheme"].lower()) not in ("http", "https"):
        raise Refusal(f"has the scheme {scheme!r}; http and https are accepted")
    authority = head["authority"] or ""
    if "@" in authority:
        raise Refusal("holds a user name or a password")
    if not _AUTHORITY.fullmatch(authority):
        raise Refusal("has no valid host and port")
    return _build(text)


def _build(text: str) -> Target:
    try:
        # Quoted anew, a URL that is signed over its exact text would fail; so that is done only where it must be.
        url = URL(text, encoded=_UNQUOTED.search(text) is None)
        host, port = (url.raw_host or "").lower().removesuffix("."), url.port
    except ValueError:
        raise Refusal("is not a valid URL") from None
    literal_address(host)
    if not port:
        raise Refusal("has no valid host and port")
    return Target(url, host, port)


def next_url(target: Target, status: int, location: str | None) -> str:
    """Return where a redirect leads; it is a new URL and has to be checked as one.

    Args:
        target: what was asked.
        status: of its answer.
        location: its ``Location``, absolute or relative.

    Raises:
        Failure: no ``Location``; a Refusal where it is not valid or leads from ``https`` to ``http``.
    """
    if not location:
        raise Failure(f"answered {status} without a Location", FetchResult.STATUS)
    try:
        url = urljoin(str(target.url), location)
    except ValueError:
        raise Refusal("redirects to a URL that is not valid") from None
    if target.url.scheme == "https" and url[:5].lower() == "http:":
        raise Refusal("redirects from https to http")
    return url
