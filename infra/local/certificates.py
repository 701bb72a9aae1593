"""One certificate for all parts of the local S3 server: whoever has it not, they do not answer."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from modcap.infra.local.private import write_private

__all__ = ["certificates"]

_VALID = datetime.timedelta(days=365 * 30)


def certificates(folder: Path, host: str = "127.0.0.1") -> dict[str, Path]:
    """The files ``ca``, ``cert`` and ``key`` (PEM) below ``folder``, made at first use.

    The authority signs this one certificate; its own key is written nowhere.

    Args:
        folder: where they are.
        host: the name or address that the certificate is for.
    """
    files = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
    if not all(file.exists() for file in files.values()):
        authority, key = _new_key(), _new_key()
        root = _signed(_name("modcap local authority"), authority.public_key(), authority, None)
        own = _signed(_name("modcap"), key.public_key(), authority, root, host)
        write_private(files["ca"], _pem(root))
        write_private(files["cert"], _pem(own))
        write_private(files["key"], _key_pem(key))
    return files


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _signed(
    name: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    host: str = "",
) -> x509.Certificate:
    """A certificate of ``key``: the authority's own where there is no ``issuer``, else a leaf."""
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer else name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer is not None:
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host)]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
