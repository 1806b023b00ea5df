"""A certificate of one's own, made on request: browsers give the microphone to HTTPS and to localhost only."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import socket
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from prunella.device_runtime.files import whole_file
from prunella.device_runtime.servers.gate import own_names

_DAYS = 397  # the longest that browsers take


def self_signed(folder: Path, names: tuple[str, ...] = ()) -> tuple[Path, Path, str]:
    """A certificate for this machine's names and addresses, and `names`; made anew where the one in `folder` does not
    cover them or is about to expire, else kept, so that a browser asks once.

    Returns:
        Paths of the certificate and its key (mode 0600), and the certificate's SHA-256 fingerprint.
    """
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    wanted = set(names) | own_names() | _addresses()
    if not (key.is_file() and _covers(certificate, wanted)):
        _make(certificate, key, wanted)
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    return certificate, key, loaded.fingerprint(hashes.SHA256()).hex(":")


def _make(certificate: Path, key: Path, names: set[str]) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "prunella on this machine")])
    now = datetime.datetime.now(datetime.timezone.utc)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS - 1))
        .add_extension(x509.SubjectAlternativeName([_general(n) for n in sorted(names)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    with whole_file(key) as partial:
        partial.write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    key.chmod(0o600)  # the folder was never open to others either
    with whole_file(certificate) as partial:
        partial.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def _covers(path: Path, names: set[str]) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=7)
    return certificate.not_valid_after_utc > soon and names <= {str(entry.value) for entry in held}


def _general(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def _addresses() -> set[str]:
    """Loopback, and the address by which the network reaches this machine."""
    found = {"127.0.0.1", "::1"}
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; only asks which way it would go
        found.add(probe.getsockname()[0])
    return found


def key_folder(cache: Path) -> Path:
    """Where the certificate lives; only its owner may look in."""
    folder = cache / "tls"
    folder.mkdir(parents=True, exist_ok=True)
    if os.name == "posix":
        folder.chmod(0o700)
    return folder
