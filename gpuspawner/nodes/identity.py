"""Keys and certificates of hubs and nodes, which know each other by fingerprint.

There is no certificate authority: each side has a certificate that it has signed itself, and is
told the other's beforehand, so that the dates and names in it say nothing. A certificate holds
until it is replaced, whatever a machine's clock says.

ref: https://www.rfc-editor.org/rfc/rfc7469 (pinning), RFC 5280, 4.1.2.5 (no expiration)
"""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from ..errors import GPUSpawnerError

IDENTITY_FILE = "identity.pem"
# X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python's `ssl` has no name for.
_NO_CHECK_TIME = 0x200000
# "No well-defined expiration date."
_FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
_MAX_FILE = 65_536


class IdentityError(GPUSpawnerError):
    """A key or a certificate can't be used. `str()` is a sentence for administrators."""


@dataclass(frozen=True)
class Identity:
    """A private key with its certificate, in one file that only its owner may read.

    Args:
        file: the file.
        certificate: the certificate in PEM form, without the key.
    """

    file: Path
    certificate: str

    @property
    def fingerprint(self) -> str:
        """The SHA-256 fingerprint of the certificate, 64 hexadecimal digits."""
        return fingerprint_of(self.certificate)


def fingerprint_of(certificate: str | bytes) -> str:
    """Return the SHA-256 fingerprint of a certificate, 64 hexadecimal digits in lower case.

    Args:
        certificate: in PEM form (text) or DER form (bytes).

    Raises:
        ValueError: it is no certificate in PEM form.
    """
    if isinstance(certificate, str):
        certificate = ssl.PEM_cert_to_DER_cert(certificate.strip())
    return hashlib.sha256(certificate).hexdigest()


def load_or_make(folder: Path, name: str) -> Identity:
    """Return the identity in a folder; make both if there is none.

    Args:
        folder: where `identity.pem` is.
        name: whom the certificate names, for people who look at it.

    Raises:
        IdentityError: it can't be used.
        OSError: the folder can't be written.
    """
    file = folder / IDENTITY_FILE
    if not file.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A name in the same folder, and private from its first byte.
        descriptor, made = tempfile.mkstemp(prefix=".identity-", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as out:
                out.write(_make(name))
                out.flush()
                os.fsync(out.fileno())
            # Whoever is first makes it, and everybody uses that one.
            with suppress(FileExistsError):
                os.link(made, file)
        finally:
            Path(made).unlink()
    return load(file)


def load(file: Path) -> Identity:
    """Return the identity in a file.

    Raises:
        IdentityError: there is none, it can't be read, or others may read it.
    """
    try:
        mode = file.stat().st_mode
        text = file.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise IdentityError(f"The key {file} can't be read: {_why(error)}.") from None
    if stat.S_IMODE(mode) & 0o077:
        raise IdentityError(
            f"The key {file} may be read by others, so it proves nothing: chmod 600 {file}"
        )
    certificates = certificates_in(text)
    if len(certificates) != 1:
        raise IdentityError(f"{file} has no key with one certificate.")
    identity = Identity(file, certificates[0])
    _context(ssl.PROTOCOL_TLS_CLIENT, identity)
    return identity


def certificates_in(text: str) -> list[str]:
    """Return the certificates of a text in PEM form, each once."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    found = {}
    for part in text[:_MAX_FILE].split(begin)[1:]:
        body, ended, _ = part.partition(end)
        if ended:
            with suppress(ValueError):
                certificate = f"{begin}\n{body.strip()}\n{end}\n"
                found[fingerprint_of(certificate)] = certificate
    return list(found.values())


def server_context(identity: Identity, peers: Iterable[str]) -> ssl.SSLContext:
    """Return the TLS settings of a server that speaks with some peers and with nobody else.

    Args:
        identity: the server's.
        peers: the certificates of those who may connect, in PEM form.

    Raises:
        IdentityError: there are no peers, or one isn't a certificate.
    """
    peers = list(peers)
    if not peers:
        raise IdentityError("No hub is known that may connect.")
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
    try:
        context.load_verify_locations(cadata="".join(peers))
    except (ssl.SSLError, ValueError) as error:
        raise IdentityError(f"The certificate of a hub can't be used: {_why(error)}.") from None
    context.verify_mode = ssl.CERT_REQUIRED
    # Who isn't known any more can't go on with an earlier session.
    context.num_tickets = 0
    return context


def client_context(identity: Identity) -> ssl.SSLContext:
    """Return the TLS settings of a client, who has to compare the server's fingerprint itself.

    Nothing may be sent before `peer_fingerprint` is what it should be.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity)


def peer_fingerprint(connection: ssl.SSLObject | ssl.SSLSocket | None) -> str:
    """Return the fingerprint of who is at the other end of a connection; "" of nobody's."""
    certificate = connection.getpeercert(binary_form=True) if connection else None
    return fingerprint_of(certificate) if certificate else ""


def _context(protocol: int, identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.verify_flags |= _NO_CHECK_TIME
    try:
        # An empty password: without one OpenSSL would ask for it at the terminal.
        context.load_cert_chain(identity.file, password="")
    except (OSError, ValueError) as error:
        raise IdentityError(f"The key {identity.file} can't be used: {_why(error)}.") from None
    return context


def _make(name: str) -> bytes:
    """Return a new key and its certificate in PEM form."""
    # Loaded here, since who only reads an identity doesn't need it.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    # ref: RFC 5280, ub-common-name
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64] or "gpuspawner")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(timezone.utc) - timedelta(days=1))
        .not_valid_after(_FOREVER)
        # It stands for itself alone: nothing that it has signed is to be trusted.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)


def _why(error: BaseException) -> str:
    return str(getattr(error, "strerror", "") or error).rstrip(".")
