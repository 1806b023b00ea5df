"""Where a server listens, and the addresses by which others reach it there."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import unicodedata
from typing import Any

import psutil

from prunella.device_runtime.base.errors import PrunellaError, UsageError

# Interfaces of containers and virtual machines, which nothing but this machine reaches.
_INNER = ("docker", "br-", "veth", "virbr", "vmnet", "vboxnet", "lxc", "cni", "flannel", "podman")
_NO_SUCH = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENODEV, errno.EINVAL)


def listen_at(host: str, port: int, option: str = "--port") -> socket.socket:
    """A socket that is bound and listens.

    Args:
        host: an address or a name of this machine; 0.0.0.0 or :: is all of them. Brackets around IPv6 may stay.
        port: 0 for any that is free.
        option: what chooses the port, for the error.

    Raises:
        UsageError: the host is none of this machine's.
        PrunellaError: the port is taken, or needs more rights.
    """
    family, (address, _, *scope) = _resolved(host)
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port, *scope))
        bound.listen(128)  # from here on who connects is served, if a moment later
    except OSError as error:
        bound.close()
        reason = error.strerror or str(error)
        if error.errno in _NO_SUCH:
            raise _no_host(host, reason) from error
        what = f"cannot listen at {_joined(host, port)} ({reason})"
        if error.errno in (errno.EACCES, errno.EPERM) and port < 1024:
            what += ": ports below 1024 are the system's"
        raise PrunellaError(f"{what}: choose another {option}") from error
    bound.set_inheritable(True)
    return bound


def urls(bound: socket.socket, host: str, scheme: str) -> tuple[str, ...]:
    """Addresses to open, the likeliest first: never 0.0.0.0 or ::, which no other machine can reach."""
    address, port = bound.getsockname()[:2]
    if not is_unspecified(address):
        return (f"{scheme}://{_joined(host, port)}/",)
    reached = lan_addresses()
    if bound.family == socket.AF_INET:
        reached = tuple(name for name in reached if ":" not in name)
    elif bound.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        reached = tuple(name for name in reached if ":" in name)
    return tuple(f"{scheme}://{_joined(name, port)}/" for name in reached or ("localhost",))


def lan_addresses() -> tuple[str, ...]:
    """Addresses of this machine in its networks: that on the way to the rest of the world first. IPv6 only where there is
    no other."""
    found: dict[str, None] = {}
    with contextlib.suppress(OSError, RuntimeError):  # what a sandbox does not let us see
        up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
        for name, addresses in psutil.net_if_addrs().items():
            if name in up and not name.startswith(_INNER):
                found |= {entry.address: None for entry in addresses if entry.family == socket.AF_INET}
    ways = [way for way in (way_out(socket.AF_INET, "192.0.2.1"), *found) if way]
    outer = [way for way in dict.fromkeys(ways) if not _is_own(way)]
    if not outer and (way := way_out(socket.AF_INET6, "2001:db8::1")) and not _is_own(way):
        outer = [way]
    return tuple(outer)


def ascii_name(name: str) -> str:
    """A name as browsers send it: in lower case, letters beyond ASCII in the xn-- form."""
    labels = unicodedata.normalize("NFKC", name.lower()).split(".")
    return ".".join(one if one.isascii() else f"xn--{one.encode('punycode').decode()}" for one in labels)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_unspecified(host: str) -> bool:
    """Whether it stands for all addresses of this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


def _resolved(host: str) -> tuple[socket.AddressFamily, Any]:
    if not host.strip():
        raise UsageError(f"--host is empty: {_choices()}")
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError) as error:
        raise _no_host(host, getattr(error, "strerror", None) or "no name") from error
    # A name may have several: browsers try IPv4 where IPv6 does not answer, not all programs the other way round.
    family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address


def _no_host(host: str, reason: str) -> UsageError:
    return UsageError(
        f"'{host[:100]}' is no address or name of this machine ({reason}): choose another --host, {_choices()}"
    )


def _choices() -> str:
    own = ", ".join(lan_addresses()[:3])
    return "127.0.0.1 for this machine alone, 0.0.0.0 for its networks" + (
        f", or one of {own}" if own else ""
    )


def way_out(family: socket.AddressFamily, address: str) -> str | None:
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing; only asks which way it would go
        return str(probe.getsockname()[0])
    return None


def _is_own(address: str) -> bool:
    plain = ipaddress.ip_address(address.partition("%")[0])
    return plain.is_loopback or plain.is_link_local or plain.is_unspecified


def _joined(host: str, port: int) -> str:
    plain = host.strip("[]")
    return f"[{plain}]:{port}" if ":" in plain else f"{plain}:{port}"
