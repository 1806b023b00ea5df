"""Who a client is: the address that connected, or what a trusted reverse proxy says of who connected to it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from prunella.device_runtime.base.errors import UsageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOME_BITS = 64  # of an IPv6 address: whoever has one has all that share them
_PORT = re.compile(r"(\d+(?:\.\d+){3}):\d+|\[([^\]]*)\](?::\d+)?")


@dataclass(frozen=True)
class Proxies:
    """Reverse proxies that are believed. `networks`: theirs; by default none is."""

    networks: tuple[Network, ...] = ()

    @staticmethod
    def of(words: Iterable[str]) -> Proxies:
        """From addresses or networks, each word one or several with commas: "127.0.0.1", "172.16.0.0/12".

        Raises:
            UsageError: one of them is neither.
        """
        networks = []
        for word in ",".join(words).split(","):
            if word := word.strip():
                try:
                    networks.append(ipaddress.ip_network(word, strict=False))
                except ValueError as error:
                    raise UsageError(
                        f"'{word}' is no address of a proxy: give one as 127.0.0.1, or a network as 172.16.0.0/12"
                    ) from error
        return Proxies(tuple(networks))

    def trusts(self, address: Address) -> bool:
        return any(address in network for network in self.networks)

    def client(self, peer: str, forwarded: str = "") -> str:
        """Under which name a client's requests are counted.

        Args:
            peer: the address that connected.
            forwarded: its `X-Forwarded-For`. Every proxy appends whom it sees, so that the last one who is no proxy of
                ours is the client; what stands before it is the client's own invention.
        """
        seen = _address(peer)
        for said in reversed(forwarded.split(",")):
            if seen is None or not self.trusts(seen):
                break
            before = _address(said)
            if before is None:
                break
            seen = before
        return peer if seen is None else _home(seen)


def _address(text: str) -> Address | None:
    text = text.strip()
    if match := _PORT.fullmatch(text):
        text = match[1] or match[2]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _home(address: Address) -> str:
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.IPv6Network((int(address), _HOME_BITS), strict=False).network_address)
