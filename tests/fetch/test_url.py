"""URLs that are refused by their text alone, and those that are not."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiservices.fetch import Fetcher, Refused, host_of
from aiservices.settings import FetchConfig
from tests.fetch.helpers import (
    SECRET,
    Names,
    fetching,
    reason_of,
)

HOSTILE_URLS = {
    # other spellings of 127.0.0.1 and its like
    "http://127.0.0.1/": "points to a private address",
    "http://127.0.0.1.": "points to a private address",
    "http://127.0.0.1:80/": "points to a private address",
    "http://\uff11\uff12\uff17.0.0.1/": "points to a private address",
    "http://127\u30020\u30020\u30021/": "points to a private address",
    "http://\u2460\u2461\u2466.0.0.1/": "points to a private address",
    "http://0.0.0.0/": "points to a private address",
    "http://169.254.169.254/latest/meta-data/": "points to a private address",
    "http://[::1]/": "points to a private address",
    "http://[::]/": "points to a private address",
    "http://[::ffff:127.0.0.1]/": "points to a private address",
    "http://[::ffff:7f00:1]/": "points to a private address",
    "http://[0:0:0:0:0:ffff:a9fe:a9fe]/": "points to a private address",
    "http://[64:ff9b::7f00:1]/": "points to a private address",
    "http://[2002:7f00:1::]/": "points to a private address",
    "http://[fe80::1]/": "points to a private address",
    "http://localhost/": "points to a private address",
    "http://LOCALHOST:8000/": "points to a private address",
    "http://a.localhost./": "points to a private address",
    "http://0x7f.1/": "neither a name nor a plain IP",
    "http://0x7f000001/": "neither a name nor a plain IP",
    "http://0X7F.0.0.1/": "neither a name nor a plain IP",
    "http://2130706433/": "neither a name nor a plain IP",
    "http://017700000001/": "neither a name nor a plain IP",
    "http://0177.0.0.1/": "neither a name nor a plain IP",
    "http://127.0.0.01/": "neither a name nor a plain IP",
    "http://127.1/": "neither a name nor a plain IP",
    "http://127.0.1/": "neither a name nor a plain IP",
    "http://0/": "neither a name nor a plain IP",
    "http://0x/": "neither a name nor a plain IP",
    "http://1.2.3.4.5/": "neither a name nor a plain IP",
    "http://256.1.1.1/": "neither a name nor a plain IP",
    "http://example.0x1/": "neither a name nor a plain IP",
    "http://[::1.2.3]/": "neither a name nor a plain IP",
    "http://[fe80::1%25eth0]/": "no valid host",
    "http://[fe80::1%eth0]/": "no valid host",
    "http://[v1.a]/": "no valid host",
    # hosts that two programs read differently
    "http://user@example.com/": "user name",
    "http://user:password@example.com/": "user name",
    "http://@example.com/": "user name",
    "http://example.com@127.0.0.1/": "user name",
    "http://127.0.0.1\\@example.com/": "backslash",
    "http://127.0.0.1:80\\@example.com/": "backslash",
    "http:\\\\127.0.0.1/": "backslash",
    "http://127.0.0.%31/": "no valid host",
    "http://exa%6dple.com/": "no valid host",
    "http://example.com /": "space",
    " http://example.com/": "space",
    "http://example.com/\r\nX-Injected: 1": "control character",
    "http://exam\tple.com/": "control character",
    "http://example.com/\0": "control character",
    "http://[::1/": "no valid host",
    "http://[::1]x/": "no valid host",
    "http://a..b/": "neither a name nor a plain IP",
    "http://.a/": "neither a name nor a plain IP",
    "http://-a.example/": "neither a name nor a plain IP",
    "http://a,b.example/": "neither a name nor a plain IP",
    "http://" + "a" * 64 + ".example/": "neither a name nor a plain IP",
    "http://" + "a." * 130 + "example/": "neither a name nor a plain IP",
    "http:///etc/passwd": "no valid host",
    "http:example.com": "no valid host",
    "http://": "no valid host",
    "http://:80/": "no valid host",
    "http://\ud800.example/": "not a valid URL",
    # ports
    "http://example.com:0/": "no valid host and port",
    "http://example.com:65536/": "not a valid URL",
    "http://example.com:+80/": "no valid host",
    "http://example.com:\uff18\uff10/": "no valid host",
    "http://example.com:/": "no valid host",
    # schemes
    "file:///etc/passwd": "scheme 'file'",
    "ftp://example.com/a.png": "scheme 'ftp'",
    "gopher://example.com/": "scheme 'gopher'",
    "javascript:alert(1)": "scheme 'javascript'",
    "data:image/png;base64,AAAA": "scheme 'data'",
    "//example.com/a.png": "not a URL with a scheme",
    "/a.png": "not a URL with a scheme",
    "": "not a URL with a scheme",
    "http://example.com/" + "a" * 9000: "longer than 8192 characters",
}


@pytest.mark.parametrize(("url", "reason"), HOSTILE_URLS.items(), ids=range(len(HOSTILE_URLS)))
async def test_a_hostile_url_is_refused_before_the_network_is_asked(url: str, reason: str) -> None:
    names = Names({})
    async with fetching(names=names) as fetcher:
        with pytest.raises(Refused, match=reason):
            fetcher.check_url(url, field="$.image_url")
        if not url.startswith("data:"):
            assert reason in await reason_of(fetcher, url, error=Refused)
    assert names.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "HTTPS://Example.COM/a.png?b=c#d",
        "http://example.com:8080/",
        "http://example.com./",
        "https://xn--zca.de/",
        "https://stra\u00dfe.de/gr\u00f6\u00dfe.png",
        "http://a_b.example/",
        "http://8.8.8.8/",
        "http://[2606:4700::1111]:443/",
        "http://127.0.0.1.example.com/",
        "http://example.com?@b",
    ],
)
async def test_an_ordinary_url_passes(url: str) -> None:
    async with fetching() as fetcher:
        fetcher.check_url(url, field="$.image_url")


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://", "data:", "http://["]))
def test_whatever_the_text_is_the_answer_is_yes_or_refused(text: str, prefix: str) -> None:
    fetcher = Fetcher(FetchConfig())
    with contextlib.suppress(Refused):
        fetcher.check_url(prefix + text, field="$.image_url")
    assert isinstance(host_of(prefix + text), str)


def test_only_the_host_of_a_url_is_logged() -> None:
    assert host_of(f"https://Bucket.example.com/private.png?{SECRET}") == "bucket.example.com"
    assert host_of("data:image/png;base64,AAAA") == "data:"
    assert host_of(f"http://user:{SECRET}@example.com/") == "?"
    assert host_of(f"http://a,{SECRET}/") == "?"
