"""The guarded download of URLs that callers gave us, and the guarded POST to them.

A URL that a caller may choose lets the caller send requests from inside our network (server-side request forgery,
CWE-918). What holds against that:

* Only ``http`` and ``https`` are connected; ``data:`` is decoded here. No user names or passwords, no host that one
  program reads as a name and another as a number. Any port from 1 to 65535: presigned URLs and test servers use odd
  ones, and what a port could reach is decided by its address.
* Only public addresses, see :func:`aiservices.fetch.addresses.is_public`, but for those in ``allow_hosts``. If one of a
  name's addresses is not public the whole name is refused. A name is looked up once per connection and exactly the
  addresses that were checked are connected, so a second answer of its DNS server (rebinding) finds no one who asks.
  Each address is checked once more where its socket is made (:class:`aiservices.fetch.client.SocketFactory`), whoever
  asked and however it was spelled. No proxy, no ``.netrc``.
* A redirect is a new URL and checked as one. From ``https`` to ``http`` is refused: the caller's secret may be in it.
* Bounds on URL, redirects, size, concurrency (in all and for one host) and the time to connect and in all. Nothing is
  ever decompressed: a compressed answer is refused, so there is no bomb to defuse (a decoder of pictures has to bound
  its pixels itself).
* Nothing is kept between two downloads: no cookies, no open connection, no DNS cache.

Presigned URLs are secrets: logs and errors name the host at most, never path, query or a byte of the body.
"""

from aiservices.fetch.fetcher import Fetcher
from aiservices.fetch.hosts import HostSlots
from aiservices.fetch.refusal import FetchResult, Refused
from aiservices.fetch.url import host_of

__all__ = ["FetchResult", "Fetcher", "HostSlots", "Refused", "host_of"]
