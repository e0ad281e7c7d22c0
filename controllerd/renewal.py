"""A controller's own certificates end. At its start it issues itself new ones, with the same names, while they are still good.

Servers read theirs once, so a controller that is not started again for eleven months tells by a metric and in its log that they
end. Authorities last ten years, and the certificates of etcd as long as theirs; those are told of likewise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from controllerd import certificate
from controllerd.agents.authority import Authority
from controllerd.certificate import ETCD_FILES, NODE_FILES, Files
from controllerd.config import ControllerConfig
from daemonkit import metrics
from daemonkit.errors import ConfigError
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)

RENEW_DAYS = 30
WARN_DAYS = 14
LOOK_INTERVAL_S = 86400.0
_DAY_S = 86400.0


def renew(config: ControllerConfig, runtime: Runtime) -> list[str]:
    """What ends within RENEW_DAYS, or was broken off when it was last renewed; gives the files that are new.

    What can't be renewed stays as it is: it may be good for some days. Errors: ConfigError for what is no certificate.
    """
    now_s = runtime.clock.wall_s()
    renewed: Files = {}
    cloud, etcd = certificate.cloud_authority(config, runtime), certificate.etcd_authority(config, runtime)
    if _due(config, NODE_FILES, now_s) and _may(config, "tls/ca.pem", cloud):
        renewed |= certificate.node_files(cloud, config.node, _names(config, "tls/node.pem"))
    if config.cluster.etcd and _due(config, ETCD_FILES, now_s) and _may(config, "etcd/ca.pem", etcd):
        renewed |= certificate.etcd_files(etcd, config.node, _names(config, "etcd/server.pem"))
    fresh = {name: content for name, content in renewed.items() if not name.endswith("/ca.pem")}
    try:
        certificate.write(config, fresh)
    except OSError as error:
        log.warning("certificates cannot be renewed", extra={"file": error.filename, "why": error.strerror})
        return []
    if fresh:
        log.warning("certificates were renewed; those of etcd need its restart", extra={"files": list(fresh)})
    return list(fresh)


def _due(config: ControllerConfig, names: tuple[str, ...], now_s: float) -> bool:
    """False where something is missing: that is bootstrap's."""
    if certificate.missing(config, names):
        return False
    files = certificate.present(config, names)
    own = [name for name in names if name.endswith(".pem") and not name.endswith("/ca.pem")]
    return any(_ends_s(config, name) - now_s < RENEW_DAYS * _DAY_S or not _fits(files, name) for name in own)


def _fits(files: Files, name: str) -> bool:
    """Whether the key beside a certificate is its own: the key is written first."""
    public = x509.load_pem_x509_certificate(files[name]).public_key()
    try:
        key = serialization.load_pem_private_key(files[name.removesuffix(".pem") + ".key"], password=None)
    except ValueError:
        return False
    return key.public_key() == public


def _may(config: ControllerConfig, trusted: str, authority: Authority) -> bool:
    """Whether what this authority issues is trusted."""
    good = authority.exists() and authority.certificate_pem() in certificate.path(config, trusted).read_bytes()
    if not good:
        log.warning("certificates end and cannot be renewed: their authority is not here", extra={"trusted": trusted})
    return good


def _names(config: ControllerConfig, name: str) -> list[str]:
    return sorted(certificate.names_in(certificate.path(config, name).read_bytes()))


def _ends_s(config: ControllerConfig, name: str) -> float:
    path = certificate.path(config, name)
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
    except ValueError:
        raise ConfigError(f"{path} is no certificate") from None


def ends(config: ControllerConfig) -> dict[str, float]:
    """File -> when it ends, in seconds since 1970: of all certificates that this controller uses. Errors: ConfigError."""
    names = (*NODE_FILES, *(ETCD_FILES if config.cluster.etcd else ()))
    there = certificate.present(config, (name for name in names if name.endswith(".pem")))
    return {name: _ends_s(config, name) for name in there}


async def watch(in_use: Mapping[str, float], runtime: Runtime) -> None:
    """Until cancelled: tells once a day. `in_use`: what `ends` gave when the servers read them."""
    while True:
        for name, end_s in in_use.items():
            left_days = (end_s - runtime.clock.wall_s()) / _DAY_S
            metrics.CERTIFICATE_LEFT_DAYS.labels(name).set(left_days)
            if left_days < WARN_DAYS:
                remedy = "make a new authority" if name.endswith("/ca.pem") else "restart this controller"
                log.warning("a certificate ends soon", extra={"file": name, "days": int(left_days), "remedy": remedy})
        await asyncio.sleep(LOOK_INTERVAL_S)
