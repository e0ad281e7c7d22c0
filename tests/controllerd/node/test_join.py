"""How a machine joins: the token, the request, the certificate."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from controllerd.agents.authority import Authority
from controllerd.app.cloud import Cloud
from controllerd.app.node import Nodes
from controllerd.domain.page import Page
from controllerd.domain.policy import Caller
from controllerd.store import node as store
from controllerd.store.database import Database
from daemonkit import tls
from daemonkit.errors import Conflict, Forbidden, InvalidArgument, NotFound, SkyrackError, Unauthenticated
from daemonkit.metrics import REFUSED_PEERS
from tests.controllerd.conftest import ManualClock


@pytest.fixture
def authority(cloud: Cloud, tmp_path: Path) -> Authority:
    authority = Authority(tmp_path / "ca", cloud.runtime)
    authority.create()
    return authority


@pytest.fixture
def nodes(cloud: Cloud, authority: Authority) -> Nodes:
    return Nodes(cloud, authority, lambda: ["10.0.0.1:7700"], lambda: ["10.0.0.1:7701"], lambda _node, _agent: None)


async def secret_for(nodes: Nodes, admin: Caller, name: str = "n1", roles: tuple[str, ...] = ("compute", "edge")) -> str:
    token, _expiry = await nodes.create_join_token(admin, name, roles, 60)
    content = json.loads(base64.urlsafe_b64decode(token))
    assert content["endpoints"] == ["10.0.0.1:7700"] and "BEGIN CERTIFICATE" in content["ca"]
    return str(content["secret"])


def csr(name: str = "n1") -> bytes:
    return tls.request(tls.new_key(), name, ["10.0.0.7"])


def refused() -> float:
    return float(REFUSED_PEERS.labels("join")._value.get())


async def test_a_token_works_once_for_its_name(nodes: Nodes, admin: Caller, clock: ManualClock) -> None:
    secret, before = await secret_for(nodes, admin), refused()
    for wrong_secret, name in ((secret, "n2"), ("garbage", "n1"), ("", "n1")):
        with pytest.raises(Unauthenticated):
            await nodes.join(wrong_secret, name, csr(name))
    joined = await nodes.join(secret, "n1", csr())
    assert joined.roles == ("compute", "edge") and joined.controllers == ("10.0.0.1:7701",)
    identity = tls.identity_of(joined.certificate_pem)
    assert identity.node == "n1" and identity.roles == {"compute", "edge"}
    view = await nodes.get(admin, "n1")
    assert view.node.certificate_serial == str(identity.serial)
    with pytest.raises(Unauthenticated):
        await nodes.join(secret, "n1", csr())
    late = await secret_for(nodes, admin)
    clock.forward(61)
    with pytest.raises(Unauthenticated):
        await nodes.join(late, "n1", csr())
    assert refused() == before + 5


async def test_joining_anew_replaces_the_certificate(nodes: Nodes, admin: Caller) -> None:
    first = await nodes.join(await secret_for(nodes, admin), "n1", csr())
    known = (await nodes.get(admin, "n1")).node
    await nodes.set_enabled(admin, "n1", False)
    again = await nodes.join(await secret_for(nodes, admin, roles=("storage",)), "n1", csr())
    node = (await nodes.get(admin, "n1")).node
    assert node.id == known.id and node.roles == ("storage",) and not node.enabled
    assert node.certificate_serial == str(tls.identity_of(again.certificate_pem).serial)
    assert node.certificate_serial != str(tls.identity_of(first.certificate_pem).serial)


async def test_a_certificate_is_for_both_ends_and_of_our_authority(nodes: Nodes, admin: Caller, authority: Authority) -> None:
    joined = await nodes.join(await secret_for(nodes, admin), "n1", csr())
    certificate, ca = x509.load_pem_x509_certificate(joined.certificate_pem), x509.load_pem_x509_certificate(joined.ca_pem)
    certificate.verify_directly_issued_by(ca)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["n1"] and [str(n.value) for n in names][1:] == ["10.0.0.7"]


def forged(*names: x509.GeneralName, key: object = None) -> bytes:
    signer = key or tls.new_key()
    builder = x509.CertificateSigningRequestBuilder().subject_name(tls.subject("n1", ["controller"]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


async def test_forged_requests_are_refused_and_the_token_stays_good(nodes: Nodes, admin: Caller) -> None:
    secret, own = await secret_for(nodes, admin), x509.DNSName("n1")
    broken = bytearray(csr())
    broken[200] ^= 1
    for request in (
        b"", b"garbage", b"x" * 100_000, bytes(broken), forged(), forged(x509.DNSName("controller")),
        forged(own, x509.DNSName("*.n1")), forged(own, x509.RFC822Name("a@b")), forged(own, x509.UniformResourceIdentifier("spiffe://x")),
        forged(own, key=rsa.generate_private_key(65537, 2048)), forged(own, key=ec.generate_private_key(ec.SECP192R1())),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument) as error:
            await nodes.join(secret, "n1", request)
        assert error.value.field == "csr_pem"
    joined = await nodes.join(secret, "n1", forged(own))  # the subject asks for a role; the token grants others
    assert tls.identity_of(joined.certificate_pem).roles == {"compute", "edge"}


@pytest.mark.parametrize("name", ["", "a b", "ö", "-a", "a-", "a" * 64, "a\n", "../x", "a_b"])
async def test_a_node_has_a_host_name(nodes: Nodes, admin: Caller, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await nodes.create_join_token(admin, name, ["compute"], 0)


@pytest.mark.parametrize("roles", [(), ("controller",), ("compute", "king")])
async def test_roles_that_a_token_cannot_grant(nodes: Nodes, admin: Caller, roles: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument):
        await nodes.create_join_token(admin, "n1", roles, 0)


async def test_nodes_are_the_admins(nodes: Nodes, admin: Caller, member: Caller) -> None:
    with pytest.raises(Forbidden):
        await nodes.create_join_token(member, "n1", ["compute"], 0)
    with pytest.raises(NotFound):
        await nodes.get(admin, "nobody")


async def test_a_node_goes_when_it_is_away_and_holds_nothing(nodes: Nodes, admin: Caller, database: Database) -> None:
    await nodes.join(await secret_for(nodes, admin), "n1", csr())
    node = (await nodes.list(admin, "n1", Page())).items[0].node
    insert = "INSERT INTO agent VALUES (?, 'computed', 1, 0, 0, '', '', '{}')"
    await database.write(lambda tx: tx.run(insert, node.id))
    with pytest.raises(Conflict, match="in session"):
        await nodes.delete(admin, "n1")
    await database.write(lambda tx: store.disconnected(tx, node.id, "computed"))
    await database.write(lambda tx: tx.run("INSERT INTO claim VALUES ('s', ?, 1, 1, 1, 0)", node.id))
    with pytest.raises(Conflict, match="holds"):
        await nodes.delete(admin, node.id)
    await database.write(lambda tx: tx.run("DELETE FROM claim"))
    await nodes.delete(admin, "n1")
    with pytest.raises(SkyrackError):
        await nodes.get(admin, "n1")
