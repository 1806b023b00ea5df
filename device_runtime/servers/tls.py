"""A certificate of one's own, made on request: browsers give the microphone to HTTPS and to localhost only."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
import ssl
import stat
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.files import whole_file
from prunella.device_runtime.servers.access import own_names
from prunella.device_runtime.servers.addresses import ascii_name, lan_addresses

_DAYS = 397  # the longest that browsers take


def self_signed(folder: Path, names: tuple[str, ...] = ()) -> tuple[Path, Path, str]:
    """A certificate for this machine's names and addresses, and `names`; made anew where the one in `folder` does not
    cover them, is about to expire or does not belong to its key, else kept, so that a browser asks once.

    Returns:
        Paths of the certificate alone, which may be given away, and of the private key with the certificate, which
        nobody else can ever read; and the certificate's SHA-256 fingerprint.

    Raises:
        UsageError: one of `names` cannot stand in a certificate.
        OSError: the folder cannot be written.
    """
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    wanted = {"127.0.0.1", "::1", *map(_plain, (*names, *lan_addresses()))}
    for name in own_names():
        with contextlib.suppress(UsageError):  # nobody asked for that one
            wanted.add(_plain(name))
    held = _held(key)
    if held is None or not _covers(held, wanted):
        held = _make(key, wanted)
    public = held.public_bytes(serialization.Encoding.PEM)
    # A copy for clients. What counts is in the other file, alone, so that no kill leaves half a pair.
    if not (certificate.is_file() and certificate.read_bytes() == public):
        with whole_file(certificate) as partial:
            partial.write_bytes(public)
    return certificate, key, held.fingerprint(hashes.SHA256()).hex(":")


def server_context(certificate: str | Path, key: str | Path) -> ssl.SSLContext:
    """What HTTPS is served with. The files are not needed afterwards.

    Raises:
        UsageError: no such files, not PEM, a key with a password, or one of another certificate.
    """
    for path in (certificate, key):
        if not Path(path).is_file():
            raise UsageError(f"{path} is no file: give certificate and key in PEM")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password="")  # without one the terminal would be asked
    except (OSError, ValueError) as error:  # also OpenSSL's
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise UsageError(
            f"{certificate} and {key} are no certificate and its key ({reason}): give both in PEM, the chain beginning "
            "with the server's own certificate, the key without a password"
        ) from error
    return context


def _make(path: Path, names: set[str]) -> x509.Certificate:
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
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with whole_file(path, mode=0o600) as partial:
        partial.write_bytes(pem + signed.public_bytes(serialization.Encoding.PEM))
    return signed


def _held(path: Path) -> x509.Certificate | None:
    """The certificate beside a key that is its own, and that nobody else wrote or can read."""
    try:
        if os.name == "posix":
            found = path.stat()
            if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid != os.geteuid():
                return None
        pem = path.read_bytes()
        private = serialization.load_pem_private_key(pem, None)
        certificate = x509.load_pem_x509_certificate(pem)
    except (OSError, ValueError, TypeError):
        return None
    return certificate if private.public_key() == certificate.public_key() else None


def _covers(certificate: x509.Certificate, names: set[str]) -> bool:
    try:
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=7)
    return certificate.not_valid_after_utc > soon and names <= {str(entry.value) for entry in held}


def _plain(name: str) -> str:
    """As a certificate has it: an address without its interface, a name in its ASCII form."""
    address = name.strip("[]").partition("%")[0]
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(address))
    try:
        plain = ascii_name(name.encode().decode().rstrip("."))
    except UnicodeError:  # half a character, which punycode would take
        plain = ""
    if not re.fullmatch(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", plain):
        raise UsageError(f"'{name[:100]}' is no name of a host: give it as prunella.home")
    return plain


def _general(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)
