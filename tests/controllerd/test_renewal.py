"""A controller's own certificates: renewed at its start while they are good, and told of when they end."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from controllerd import certificate, renewal
from controllerd.bootstrap import bootstrap
from controllerd.certificate import ETCD_FILES, NODE_FILES
from controllerd.config import ControllerConfig
from controllerd.renewal import RENEW_DAYS, WARN_DAYS
from daemonkit import metrics, tls
from daemonkit.runtime import Runtime
from tests.controllerd.conftest import ManualClock
from tests.controllerd.test_bootstrap import clustered, verifies

DAY_S = 86400
NODE_PAIR, ETCD_FRESH = ["tls/node.key", "tls/node.pem"], [n for n in ETCD_FILES if n != "etcd/ca.pem"]


@pytest.fixture
async def config(tmp_path: Path, runtime: Runtime) -> ControllerConfig:
    config = clustered(tmp_path / "c1", "c1", "10.0.0.1")
    await bootstrap(config, ["cloud.example"], tmp_path / "admin.env", runtime)
    return config


def forward_to(clock: ManualClock, config: ControllerConfig, name: str, days_left: float) -> None:
    clock.forward(renewal.ends(config)[name] - days_left * DAY_S - clock.now_s)


def names(config: ControllerConfig, name: str) -> set[str]:
    return certificate.names_in(certificate.path(config, name).read_bytes())


def test_what_ends_soon_is_issued_anew(config: ControllerConfig, runtime: Runtime, clock: ManualClock) -> None:
    assert renewal.renew(config, runtime) == []
    forward_to(clock, config, "tls/node.pem", RENEW_DAYS + 1)
    assert renewal.renew(config, runtime) == []
    known, authority = names(config, "tls/node.pem"), certificate.path(config, "tls/ca.pem").read_bytes()
    clock.forward(2 * DAY_S)
    assert renewal.renew(config, runtime) == NODE_PAIR
    assert renewal.ends(config)["tls/node.pem"] - clock.now_s > 360 * DAY_S
    assert names(config, "tls/node.pem") == known >= {"c1", "10.0.0.1", "cloud.example"}
    assert certificate.path(config, "tls/ca.pem").read_bytes() == authority
    assert verifies(config, "tls/ca.pem", "sslserver", "tls/node.pem")
    identity = tls.TlsFiles(config.tls_dir).identity()
    assert (identity.node, identity.roles) == ("c1", {"controller"})
    assert all(certificate.path(config, name).stat().st_mode & 0o077 == 0 for name in NODE_PAIR)
    assert renewal.renew(config, runtime) == []


def test_those_of_etcd_too(config: ControllerConfig, runtime: Runtime, clock: ManualClock) -> None:
    known = names(config, "etcd/server.pem")
    forward_to(clock, config, "etcd/client.pem", RENEW_DAYS - 1)
    assert renewal.renew(config, runtime) == [*NODE_PAIR, *ETCD_FRESH]
    assert names(config, "etcd/server.pem") == known
    assert verifies(config, "etcd/ca.pem", "sslclient", "etcd/client.pem")


def test_broken_off_and_repeated(
    config: ControllerConfig, runtime: Runtime, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new key beside the old certificate."""
    forward_to(clock, config, "tls/node.pem", 1)
    write = tls.write_private

    def broken(path: Path, data: bytes) -> None:
        if path.suffix == ".pem":
            raise RuntimeError("power failure")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(tls, "write_private", broken)
        with pytest.raises(RuntimeError):
            renewal.renew(config, runtime)
    clock.forward(-100 * DAY_S)  # not for its end
    assert renewal.renew(config, runtime) == NODE_PAIR
    assert renewal.renew(config, runtime) == []


def test_what_cannot_be_renewed_stays(
    config: ControllerConfig, runtime: Runtime, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    forward_to(clock, config, "tls/node.pem", 1)
    before = {name: certificate.path(config, name).read_bytes() for name in NODE_FILES}
    key = certificate.path(config, "ca/ca.key")
    key.rename(key.with_suffix(".away"))
    assert renewal.renew(config, runtime) == [] and "cannot be renewed" in caplog.text
    key.with_suffix(".away").rename(key)
    trusted = certificate.path(config, "tls/ca.pem")
    trusted.write_bytes(certificate.path(config, "etcd/ca.pem").read_bytes())  # of another authority
    assert renewal.renew(config, runtime) == []
    trusted.write_bytes(before["tls/ca.pem"])
    assert {name: certificate.path(config, name).read_bytes() for name in NODE_FILES} == before


async def test_the_end_is_told_while_it_runs(
    config: ControllerConfig, runtime: Runtime, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def look() -> None:
        watching = asyncio.create_task(renewal.watch(renewal.ends(config), runtime))
        await asyncio.sleep(0)
        watching.cancel()

    caplog.set_level(logging.WARNING)
    await look()
    assert not caplog.records
    forward_to(clock, config, "tls/node.pem", WARN_DAYS - 1)
    await look()
    assert [(vars(record)["file"], vars(record)["days"]) for record in caplog.records] == [("tls/node.pem", WARN_DAYS - 1)]
    told = {"tls/node.pem", "tls/ca.pem", "etcd/ca.pem", "etcd/server.pem", "etcd/client.pem"}
    left = {name: metrics.REGISTRY.get_sample_value("skyrack_certificate_left_days", {"file": name}) for name in told}
    assert left["tls/node.pem"] == pytest.approx(WARN_DAYS - 1) and (left["tls/ca.pem"] or 0) > 3000
    assert None not in left.values()
