"""Which addresses are public, and which entries of ``allow_hosts`` cover what."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiservices.errors import ConfigError
from aiservices.fetch import Fetcher
from aiservices.fetch.addresses import AllowList, is_public
from aiservices.settings import FetchConfig

PUBLIC = {
    "IPv4": ("93.184.216.34", "8.8.8.8", "1.1.1.1", "223.255.255.254"),
    "IPv6": ("2606:4700::1111", "2a00:1450:4001::200e", "2001:200::1", "2001:4860:4860::8888"),
    "embedded": ("::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
}


NOT_PUBLIC = {
    "this host": ("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "::", "::1"),
    "private": ("10.0.0.1", "172.16.0.1", "172.31.255.1", "192.168.1.1", "fc00::1", "fd00:ec2::254", "fec0::1"),
    "link": ("169.254.169.254", "fe80::1", "fe80::1%eth0"),
    "carrier": ("100.64.0.1", "100.100.100.200"),
    "protocol": ("192.0.0.1", "192.0.0.192", "192.88.99.1", "168.63.129.16", "2001:20::1", "100::1", "5f00::1"),
    "documentation": ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"),
    "benchmark": ("198.18.0.1",),
    "multicast": ("224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1"),
    "reserved": ("240.0.0.1", "255.255.255.255", "4000::1"),
    "mapped": ("::ffff:127.0.0.1", "::ffff:100.64.0.1", "::ffff:224.0.0.1"),
    "compatible": ("::127.0.0.1", "::8.8.8.8"),
    "NAT64": ("64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8"),
    "6to4": ("2002:7f00:1::1", "2002:808:808::1"),
    "Teredo": ("2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    "zone": ("2606:4700::1111%1", "::ffff:8.8.8.8%1", "64:ff9b::8.8.8.8%1"),
}


@pytest.mark.parametrize("address", [address for group in PUBLIC.values() for address in group])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", [address for group in NOT_PUBLIC.values() for address in group])
def test_every_other_address_is_not(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_as_private_as_the_plain_one(address: ipaddress.IPv4Address) -> None:
    assert is_public(ipaddress.ip_address(f"::ffff:{address}")) == is_public(address)
    assert is_public(ipaddress.ip_address(f"64:ff9b::{address}")) == is_public(address)
    assert not is_public(ipaddress.IPv6Address((0x2002 << 112) | int(address) << 80 | 1))


@pytest.mark.parametrize(
    ("entry", "host", "port", "covered"),
    [
        ("minio", "minio", 9000, True),
        ("MinIO:9000", "minio", 9000, True),
        ("minio:9000", "minio", 9001, False),
        ("minio", "minio.example", 9000, False),
        ("minio.internal", "minio.internal.", 80, True),
        ("127.0.0.1:9000", "minio", 9000, False),
    ],
)
def test_a_name_is_allowed_as_it_is_written(entry: str, host: str, port: int, covered: bool) -> None:
    assert AllowList.parse([entry]).covers_host(host, port) is covered


@pytest.mark.parametrize(
    ("entry", "address", "port", "covered"),
    [
        ("127.0.0.1:9000", "127.0.0.1", 9000, True),
        ("127.0.0.1:9000", "::ffff:127.0.0.1", 9000, True),
        ("127.0.0.1:9000", "127.0.0.1", 9001, False),
        ("127.0.0.1", "127.0.0.1", 9001, True),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("10.0.0.0/8:9000", "10.1.2.3", 80, False),
        ("10.0.0.0/8", "64:ff9b::10.1.2.3", 80, False),
        ("::1", "::1", 80, True),
        ("[::1]:9000", "::1", 9000, True),
        ("[::1]:9000", "::1", 9001, False),
        ("fd00::/8", "fd12::1", 80, True),
        ("fd00::/8", "10.0.0.1", 80, False),
    ],
)
def test_an_address_is_allowed_by_its_network(entry: str, address: str, port: int, covered: bool) -> None:
    assert AllowList.parse([entry]).covers_address(ipaddress.ip_address(address), port) is covered


@pytest.mark.parametrize("entry", ["", "http://minio", "minio:port", "10.0.0.1/8", "*.internal", "0x7f.1", "a b"])
def test_a_wrong_entry_of_allowed_hosts_is_named(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"allow_hosts"):
        Fetcher(FetchConfig(allow_hosts=("minio", entry)))
