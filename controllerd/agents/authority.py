"""The built-in certificate authorities: an ECDSA P-256 key each, on the controllers' disks, 0600.

One signs the nodes' certificates. The other signs what opens etcd and goes to controllers only: with its own certificate no
other node gets in there. Node certificates carry keyEncipherment besides digitalSignature because libvirt's check of QEMU's
TLS files asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from daemonkit import tls
from daemonkit.errors import ConfigError, InvalidArgument
from daemonkit.runtime import Runtime

CA_DAYS = 3650
NODE_DAYS = 365
ETCD_DAYS = CA_DAYS  # a quorum whose certificates all end in one night is a cloud without a controller
BACKDATED = timedelta(hours=1)  # so that a node whose clock is behind accepts it
CSR_BYTES_MAX = 16 << 10
KEY_BITS_MIN = 256
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class Authority:
    """`name`: of its files, NAME.key and NAME.pem. `title`: what its certificate calls it."""

    def __init__(self, directory: Path, runtime: Runtime, name: str = "ca", title: str = "Skyrack CA") -> None:
        self._key_path, self._certificate_path = directory / f"{name}.key", directory / f"{name}.pem"
        self._runtime, self._title = runtime, title

    def exists(self) -> bool:
        return self._certificate_path.exists() and self._key_path.exists()

    def create(self) -> None:
        """A new key and self-signed certificate. The key is written first: without the certificate it counts for nothing."""
        key = tls.new_key()
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "skyrack"),
                          x509.NameAttribute(NameOID.COMMON_NAME, self._title)])  # fmt: skip
        usage = _usage(certificate_sign=True)
        builder = self._builder(name, CA_DAYS).issuer_name(name).public_key(key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        tls.write_private(self._key_path, tls.key_pem(key))
        tls.write_private(self._certificate_path, _pem(builder.sign(key, hashes.SHA256())))

    def certificate_pem(self) -> bytes:
        """Errors: ConfigError before bootstrap."""
        return self._read(self._certificate_path)

    def key_pem(self) -> bytes:
        """For another controller, which is to issue certificates too. Errors: ConfigError before bootstrap."""
        return self._read(self._key_path)

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        node: str,
        roles: Iterable[str],
        names: x509.SubjectAlternativeName,
        *,
        uses: Sequence[x509.ObjectIdentifier] = (SERVER, CLIENT),
        days: int = NODE_DAYS,
    ) -> tuple[bytes, int]:
        """A node certificate in PEM, and its serial number."""
        ca = x509.load_pem_x509_certificate(self.certificate_pem())
        signer = cast(ec.EllipticCurvePrivateKey, serialization.load_pem_private_key(self.key_pem(), password=None))
        builder = self._builder(tls.subject(node, roles), days).issuer_name(ca.subject).public_key(public_key)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(certificate_sign=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        builder = builder.add_extension(names, critical=False)
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        certificate = builder.add_extension(issuer_key, critical=False).sign(signer, hashes.SHA256())
        return _pem(certificate), certificate.serial_number

    def issue_for_request(self, csr_pem: bytes, node: str, roles: Iterable[str]) -> tuple[bytes, int]:
        """Signs a request of node `node`. Errors: InvalidArgument (csr_pem) when it is malformed or asks for other names."""
        request = read_request(csr_pem, node)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return self.issue(cast(ec.EllipticCurvePublicKey, request.public_key()), node, roles, names)

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; run `skyrack-controllerd bootstrap`") from None

    def _builder(self, subject: x509.Name, days: int) -> x509.CertificateBuilder:
        now = datetime.fromtimestamp(self._runtime.clock.wall_s(), UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .serial_number(self._runtime.rng.getrandbits(126) + 1)
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + timedelta(days=days))
        )


def read_request(csr_pem: bytes, node: str) -> x509.CertificateSigningRequest:
    """Errors: InvalidArgument naming csr_pem."""
    if len(csr_pem) > CSR_BYTES_MAX:
        raise InvalidArgument("csr_pem", f"at most {CSR_BYTES_MAX} bytes")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key, good = request.public_key(), request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise InvalidArgument("csr_pem", "is not a PEM certificate request with alternative names") from None
    if not good or not isinstance(key, ec.EllipticCurvePublicKey) or key.key_size < KEY_BITS_MIN:
        raise InvalidArgument("csr_pem", f"must be signed by its own ECDSA key of at least {KEY_BITS_MIN} bits")
    if any(not isinstance(n, x509.IPAddress) and n != x509.DNSName(node) for n in names):
        raise InvalidArgument("csr_pem", f"may name nothing but {node!r} and IP addresses")
    return request


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _usage(*, certificate_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=not certificate_sign, data_encipherment=False,
        key_agreement=False, key_cert_sign=certificate_sign, crl_sign=certificate_sign, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip
