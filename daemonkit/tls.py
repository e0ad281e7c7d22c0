"""Certificates between our machines: files, identity of a peer, certificate requests.

A node has `ca.pem`, `node.pem` and `node.key` in one directory. The subject of a node certificate is CN = node name, one OU a
role; its alternative names are the node's name and addresses, so that a peer can check whom it dialled. The authority that
signs them is controllerd's.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from daemonkit.errors import ConfigError, Forbidden

ROLES = ("controller", "compute", "edge", "gateway", "storage")


@dataclass(frozen=True)
class Identity:
    """Who a certificate says its holder is."""

    node: str
    roles: frozenset[str]
    serial: int


@dataclass(frozen=True)
class TlsFiles:
    """Reads afresh at every call, so a renewed certificate is used by the next connection."""

    directory: Path

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def certificate(self) -> Path:
        return self.directory / "node.pem"

    @property
    def key(self) -> Path:
        return self.directory / "node.key"

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; has this node joined?") from None

    def server(self, *, clients_must_show_certificate: bool) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self._read(self.key), self._read(self.certificate))],
            root_certificates=self._read(self.ca),
            require_client_auth=clients_must_show_certificate,
        )

    def client(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self._read(self.ca), self._read(self.key), self._read(self.certificate))

    def identity(self) -> Identity:
        """Errors: ConfigError when the file is missing or no certificate."""
        try:
            return identity_of(self._read(self.certificate))
        except ValueError as error:
            raise ConfigError(f"{self.certificate}: {error}") from None


def identity_of(pem: bytes) -> Identity:
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    roles = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    return Identity(str(names[0].value) if names else "", frozenset(str(r.value) for r in roles), certificate.serial_number)


def peer(context: grpc.aio.ServicerContext[Any, Any]) -> Identity:
    """Identity of the caller of a gRPC method. Errors: Forbidden without a client certificate."""
    pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
    if not pem:
        raise Forbidden("a client certificate is needed")
    return identity_of(pem)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def subject(node: str, roles: Iterable[str]) -> x509.Name:
    units = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role) for role in sorted(roles)]
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "skyrack"), *units,
                      x509.NameAttribute(NameOID.COMMON_NAME, node)])  # fmt: skip


def alternative_names(node: str, addresses: Iterable[str]) -> x509.SubjectAlternativeName:
    ips = [x509.IPAddress(ipaddress.ip_address(a)) for a in addresses]
    return x509.SubjectAlternativeName([x509.DNSName(node), *ips])


def request(key: ec.EllipticCurvePrivateKey, node: str, addresses: Iterable[str]) -> bytes:
    """A PEM certificate request. Roles are not asked for: the join token grants them."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject(node, ()))
    builder = builder.add_extension(alternative_names(node, addresses), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def write_private(path: Path, data: bytes) -> None:
    """Replaces `path` atomically and durably with a file only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".new")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
