"""The address that a server prints can be opened, by others too where it is for them."""

from __future__ import annotations

import ipaddress
import socket
from types import SimpleNamespace

import pytest

from prunella.device_runtime.servers import addresses
from prunella.device_runtime.servers.addresses import lan_addresses, listen_at, urls


def _interfaces(monkeypatch, way, **found):
    """A machine with these interfaces; `way` is its address towards the rest of the world."""
    entry = SimpleNamespace
    listed = {
        name: [
            entry(family=socket.AF_INET, address=address),
            entry(family=socket.AF_INET6, address="fe80::1%x"),
        ]
        for name, address in found.items()
    }
    monkeypatch.setattr(addresses.psutil, "net_if_addrs", lambda: listed)
    stats = {name: entry(isup=not name.startswith("off")) for name in found}
    monkeypatch.setattr(addresses.psutil, "net_if_stats", lambda: stats)
    monkeypatch.setattr(addresses, "way_out", lambda family, _: way if family == socket.AF_INET else None)


def test_the_networks_address_is_printed_and_not_a_containers(monkeypatch):
    _interfaces(
        monkeypatch,
        "192.168.1.5",
        lo="127.0.0.1",
        docker0="172.17.0.1",
        eth0="10.0.0.2",
        wlan0="192.168.1.5",
        off0="10.9.9.9",
        usb0="169.254.3.4",
    )
    assert lan_addresses() == ("192.168.1.5", "10.0.0.2")
    with listen_at("0.0.0.0", 0) as bound:
        port = bound.getsockname()[1]
        assert urls(bound, "0.0.0.0", "https") == (
            f"https://192.168.1.5:{port}/",
            f"https://10.0.0.2:{port}/",
        )


def test_a_network_without_a_way_out_has_an_address_too(monkeypatch):
    _interfaces(monkeypatch, None, lo="127.0.0.1", wlan0="10.42.0.1")
    assert lan_addresses() == ("10.42.0.1",)


def test_a_machine_without_a_network_has_its_own_name(monkeypatch):
    _interfaces(monkeypatch, None, lo="127.0.0.1")
    with listen_at("0.0.0.0", 0) as bound:
        assert urls(bound, "0.0.0.0", "http") == (f"http://localhost:{bound.getsockname()[1]}/",)


def test_an_address_that_may_not_be_looked_up_is_no_error(monkeypatch):
    def refused():
        raise PermissionError

    monkeypatch.setattr(addresses.psutil, "net_if_stats", refused)
    monkeypatch.setattr(addresses, "way_out", lambda *_: None)
    assert lan_addresses() == ()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_all_of_ipv6_is_all_of_ipv4_too(monkeypatch):
    _interfaces(monkeypatch, "192.168.1.5", wlan0="192.168.1.5")
    with listen_at("::", 0) as bound:
        port = bound.getsockname()[1]
        assert urls(bound, "::", "http") == (f"http://192.168.1.5:{port}/",)
        socket.create_connection(("127.0.0.1", port)).close()
    monkeypatch.setattr(addresses, "lan_addresses", lambda: ("2001:db8::7",))
    with listen_at("[::]", 0) as bound:
        assert urls(bound, "[::]", "http") == (f"http://[2001:db8::7]:{bound.getsockname()[1]}/",)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_one_address_is_printed_as_it_was_given(host):
    with listen_at(host, 0) as bound:
        port = bound.getsockname()[1]
        assert urls(bound, host, "http") == (f"http://{host}:{port}/",)
        socket.create_connection(("127.0.0.1", port)).close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_has_its_brackets(host):
    with listen_at(host, 0) as bound:
        assert urls(bound, host, "http") == (f"http://[::1]:{bound.getsockname()[1]}/",)


def test_what_this_machine_says_is_an_address_that_others_can_use():
    for address in lan_addresses():
        plain = ipaddress.ip_address(address)
        assert not (plain.is_loopback or plain.is_unspecified or plain.is_link_local)
