"""Certificates for tests: an authority and node certificates of the shape that daemonkit.tls describes.

    pki = Pki(tmp_path)
    directory = pki.node("store-1", "storage")        # ca.pem, node.pem, node.key

Names and addresses in each certificate: the node's name, "localhost", 127.0.0.1 and whatever is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from daemonkit import tls

LIFETIME = timedelta(days=2)


class Pki:
    """One authority under `directory`; two of them do not know each other's nodes."""

    def __init__(self, directory: Path, name: str = "test-authority") -> None:
        self.directory = directory
        self._key = tls.new_key()
        self._name = tls.subject(name, ())
        self.ca = self._authority()

    def _authority(self) -> x509.Certificate:
        builder = self._begin(self._name).public_key(self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(sign_certificates=True), critical=True)
        return builder.sign(self._key, hashes.SHA256())

    def _begin(self, subject: x509.Name) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + LIFETIME)
        )

    def node(self, node: str, *roles: str, addresses: Iterable[str] = ()) -> Path:
        """Writes the certificate files of a node; gives their directory."""
        key = tls.new_key()
        names = x509.SubjectAlternativeName(
            [*tls.alternative_names(node, {"127.0.0.1", *addresses}), x509.DNSName("localhost")]
        )
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = self._begin(tls.subject(node, roles)).public_key(key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(sign_certificates=False), critical=True)
        builder = builder.add_extension(both, critical=False).add_extension(names, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        directory = self.directory / node
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "ca.pem").write_bytes(self.ca.public_bytes(serialization.Encoding.PEM))
        (directory / "node.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        tls.write_private(directory / "node.key", tls.key_pem(key))
        return directory


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_encipherment=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
