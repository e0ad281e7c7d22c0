"""The files that make a machine a controller: its certificate as a node, and those that open etcd.

Named HOME/FILE, the homes being `ca` (the authorities, in the data directory), `tls` (what every node has) and `etcd` (what
only controllers have, and the etcd beside them).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cryptography import x509

from controllerd.agents.authority import CLIENT, ETCD_DAYS, SERVER, Authority
from controllerd.config import ControllerConfig
from daemonkit import tls
from daemonkit.errors import ConfigError
from daemonkit.runtime import Runtime

Files = dict[str, bytes]

# A member of etcd is a server to clients and both to other members.
_ETCD_USES = {"server": (SERVER, CLIENT), "client": (CLIENT,)}


def cloud_authority(config: ControllerConfig, runtime: Runtime) -> Authority:
    """Signs the certificates of all nodes."""
    return Authority(config.data_dir / "ca", runtime)


def etcd_authority(config: ControllerConfig, runtime: Runtime) -> Authority:
    """Signs what opens etcd, for controllers only."""
    return Authority(config.data_dir / "ca", runtime, "etcd-ca", "Skyrack etcd CA")


def authority_files(cloud: Authority, etcd: Authority) -> Files:
    """What lets a controller issue certificates itself. Errors: ConfigError before bootstrap."""
    return {
        "ca/ca.key": cloud.key_pem(), "ca/ca.pem": cloud.certificate_pem(),
        "ca/etcd-ca.key": etcd.key_pem(), "ca/etcd-ca.pem": etcd.certificate_pem(),
    }  # fmt: skip


def node_files(cloud: Authority, node: str, hosts: Sequence[str]) -> Files:
    """A certificate of role controller, which is also what the public API shows. `hosts`: its names and addresses."""
    key = tls.new_key()
    pem, _serial = cloud.issue(key.public_key(), node, ["controller"], _alternatives(node, hosts))
    return {"tls/ca.pem": cloud.certificate_pem(), "tls/node.key": tls.key_pem(key), "tls/node.pem": pem}


def etcd_files(etcd: Authority, node: str, hosts: Sequence[str]) -> Files:
    """Certificates for the etcd member on this node, and for its controller as a client."""
    files = {"etcd/ca.pem": etcd.certificate_pem()}
    for name, uses in _ETCD_USES.items():
        key = tls.new_key()
        names = _alternatives(node, hosts)
        pem, _serial = etcd.issue(key.public_key(), node, ["controller"], names, uses=uses, days=ETCD_DAYS)
        files |= {f"etcd/{name}.key": tls.key_pem(key), f"etcd/{name}.pem": pem}
    return files


NODE_FILES = ("tls/ca.pem", "tls/node.key", "tls/node.pem")
ETCD_FILES = ("etcd/ca.pem", *(f"etcd/{name}.{ending}" for name in _ETCD_USES for ending in ("key", "pem")))
AUTHORITY_FILES = ("ca/ca.key", "ca/ca.pem", "ca/etcd-ca.key", "ca/etcd-ca.pem")


def hosts(config: ControllerConfig, further: Iterable[str] = ()) -> list[str]:
    """Under which names and addresses this controller is dialled."""
    return [*advertised(config), *further, "localhost", "127.0.0.1"]


def advertised(config: ControllerConfig) -> list[str]:
    """What other machines are told to dial, without ports."""
    told = (config.advertise_api, config.advertise_agents)
    return [address.rpartition(":")[0].strip("[]") for address in told if address]


def names_in(pem: bytes) -> set[str]:
    """Names and addresses that a certificate is good for."""
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def _alternatives(node: str, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    """Errors: ConfigError for what is no host name."""
    entries: list[x509.GeneralName] = []
    for host in dict.fromkeys([node, *filter(None, hosts)]):
        try:
            entries.append(x509.IPAddress(ipaddress.ip_address(host)))
            continue
        except ValueError:
            pass
        try:
            entries.append(x509.DNSName(host))
        except ValueError:
            raise ConfigError(f"{host!r} is no host name in ASCII") from None
    return x509.SubjectAlternativeName(entries)


def path(config: ControllerConfig, name: str) -> Path:
    home, _, file = name.partition("/")
    homes = {"ca": config.data_dir / "ca", "tls": config.tls_dir, "etcd": config.cluster.etcd_tls_dir}
    return homes[home] / file


def present(config: ControllerConfig, names: Iterable[str]) -> Files:
    """Those of them that are there."""
    return {name: path(config, name).read_bytes() for name in names if path(config, name).exists()}


def missing(config: ControllerConfig, names: Iterable[str]) -> bool:
    return any(not path(config, name).exists() for name in names)


def write(config: ControllerConfig, files: Mapping[str, bytes]) -> None:
    """In the order given: a certificate after its key, so that what was broken off is seen to be missing."""
    for name, content in files.items():
        tls.write_private(path(config, name), content)
