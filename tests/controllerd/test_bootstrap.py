"""Bootstrap: once, twice, broken off, and beside a running controller; of several controllers by a bundle."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from controllerd import bootstrap as module
from controllerd import certificate
from controllerd.app.cloud import Cloud
from controllerd.app.login import Login, Passwords
from controllerd.bootstrap import FLAVORS_AT_FIRST, bootstrap
from controllerd.bundle import install_bundle, is_member, make_bundle
from controllerd.config import ClusterConfig, ControllerConfig
from controllerd.leadership.commit_log import LocalLog
from controllerd.store.database import Database
from daemonkit import tls
from daemonkit.errors import ConfigError
from daemonkit.lifecycle import DataDirectory
from daemonkit.runtime import Runtime


@pytest.fixture
def config(tmp_path: Path) -> ControllerConfig:
    addresses = {"advertise_api": "10.0.0.1:7700", "advertise_agents": "[fd00::1]:7701"}
    return ControllerConfig(node="ctl-1", data_dir=tmp_path / "data", tls_dir=tmp_path / "tls", **addresses)


def clustered(directory: Path, node: str, address: str) -> ControllerConfig:
    """One of several controllers, with all its files below `directory`."""
    cluster = ClusterConfig(etcd=["10.0.0.1:2379", "10.0.0.2:2379", "10.0.0.3:2379"], etcd_tls_dir=directory / "etcd")
    told = {"advertise_api": f"{address}:7700", "advertise_agents": f"{address}:7701"}
    return ControllerConfig(node=node, data_dir=directory / "data", tls_dir=directory / "tls", cluster=cluster, **told)


@pytest.fixture
async def first(tmp_path: Path, runtime: Runtime) -> ControllerConfig:
    config = clustered(tmp_path / "c1", "c1", "10.0.0.1")
    await bootstrap(config, [], tmp_path / "admin.env", runtime)
    return config


@pytest.fixture
def second(tmp_path: Path) -> ControllerConfig:
    return clustered(tmp_path / "c2", "c2", "10.0.0.2")


def everything(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


def verifies(config: ControllerConfig, authority: str, purpose: str, name: str) -> bool:
    """What openssl says of one of its certificates as an `sslserver` or `sslclient`."""
    paths = (str(certificate.path(config, file)) for file in (authority, name))
    argv = ["openssl", "verify", "-no_check_time", "-purpose", purpose, "-CAfile", *paths]
    return subprocess.run(argv, capture_output=True).returncode == 0


def password_in(env: Path) -> str:
    lines = dict(line.removeprefix("export ").split("=", 1) for line in env.read_text().splitlines())
    assert lines["SKYRACK_ENDPOINT"] == "10.0.0.1:7700" and lines["SKYRACK_USER"] == "admin"
    return lines["SKYRACK_PASSWORD"]


async def can_log_in(config: ControllerConfig, password: str, runtime: Runtime) -> bool:
    database = Database(config.data_dir / "state.db", LocalLog(), runtime)
    await database.open()
    commits = asyncio.create_task(database.run())
    cloud = Cloud(database, runtime)
    try:
        issued = await Login(cloud, Passwords(cloud)).issue("admin", password, "", 0)
        flavors = await database.read(lambda tx: tx.value("SELECT count(*) FROM flavor WHERE project_id = ''"))
        return issued.caller.admin and flavors == len(FLAVORS_AT_FIRST)
    finally:
        commits.cancel()
        await asyncio.wait([commits])
        await database.close()


async def test_once_and_twice(config: ControllerConfig, tmp_path: Path, runtime: Runtime) -> None:
    env = tmp_path / "admin.env"
    assert "ready" in await bootstrap(config, ["cloud.example"], env, runtime)
    files = [env, *config.tls_dir.iterdir(), *(config.data_dir / "ca").iterdir()]
    before = {f: f.read_bytes() for f in files}
    assert all(f.stat().st_mode & 0o077 == 0 for f in files)
    assert "already" in await bootstrap(config, [], env, runtime)
    assert {f: f.read_bytes() for f in files} == before
    assert await can_log_in(config, password_in(env), runtime)
    identity = tls.TlsFiles(config.tls_dir).identity()
    assert identity.node == "ctl-1" and identity.roles == {"controller"}
    certificate = x509.load_pem_x509_certificate((config.tls_dir / "node.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(n.value) for n in names} == {"ctl-1", "10.0.0.1", "fd00::1", "cloud.example", "localhost", "127.0.0.1"}


@pytest.mark.parametrize("at", ["write_private", "_insert", "issue_missing", "_first_rows"])
async def test_broken_off_and_repeated(
    config: ControllerConfig, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    env = tmp_path / "admin.env"

    def broken(*_args: object) -> None:
        raise RuntimeError("power failure")

    with monkeypatch.context() as patch:
        patch.setattr(certificate.tls if at == "write_private" else module, at, broken)
        with pytest.raises(RuntimeError):
            await bootstrap(config, [], env, runtime)
    assert "ready" in await bootstrap(config, [], env, runtime)
    assert await can_log_in(config, password_in(env), runtime)


async def test_not_beside_a_running_controller(config: ControllerConfig, tmp_path: Path, runtime: Runtime) -> None:
    held = DataDirectory(config.data_dir)
    with pytest.raises(ConfigError):
        await bootstrap(config, [], tmp_path / "admin.env", runtime)
    held.close()


async def test_what_an_earlier_version_did_not_make_is_added(
    config: ControllerConfig, tmp_path: Path, runtime: Runtime
) -> None:
    await bootstrap(config, [], tmp_path / "admin.env", runtime)
    for path in (config.data_dir / "ca").glob("etcd*"):
        path.unlink()
    before = everything(tmp_path)
    grown = replace(config, cluster=clustered(tmp_path, "ctl-1", "10.0.0.1").cluster)
    assert await bootstrap(grown, [], tmp_path / "admin.env", runtime) == (
        "added: certificate authority of etcd, certificates for etcd"
    )
    after = everything(tmp_path)
    assert {path: after[path] for path in before} == before
    assert "nothing was changed" in await bootstrap(grown, [], tmp_path / "admin.env", runtime)
    assert everything(tmp_path) == after


async def test_etcd_opens_to_controllers_only(first: ControllerConfig) -> None:
    assert verifies(first, "etcd/ca.pem", "sslserver", "etcd/server.pem")
    assert verifies(first, "etcd/ca.pem", "sslclient", "etcd/server.pem")  # towards other members
    assert verifies(first, "etcd/ca.pem", "sslclient", "etcd/client.pem")
    assert not verifies(first, "etcd/ca.pem", "sslserver", "etcd/client.pem")
    assert not verifies(first, "etcd/ca.pem", "sslclient", "tls/node.pem")
    assert not verifies(first, "tls/ca.pem", "sslclient", "etcd/client.pem")
    names = certificate.names_in(certificate.path(first, "etcd/server.pem").read_bytes())
    assert names == {"c1", "10.0.0.1", "localhost", "127.0.0.1"}


async def test_bundle(first: ControllerConfig, second: ControllerConfig, tmp_path: Path, runtime: Runtime) -> None:
    held = DataDirectory(first.data_dir)  # it can be made while the controller runs
    bundle = make_bundle(first, "c2", ["10.0.0.2", "c2.example"], runtime)
    held.close()
    assert "ready as controller c2" in install_bundle(second, bundle)
    before = everything(tmp_path / "c2")
    assert all(path.stat().st_mode & 0o077 == 0 for path in before)
    assert "nothing was changed" in install_bundle(second, bundle)
    identity = tls.TlsFiles(second.tls_dir).identity()
    assert (identity.node, identity.roles) == ("c2", {"controller"})
    assert verifies(second, "etcd/ca.pem", "sslserver", "etcd/server.pem") and verifies(
        second, "tls/ca.pem", "sslserver", "tls/node.pem"
    )
    # Its state is the leader's: bootstrap makes none here, nor an admin.
    assert "nothing was changed" in await bootstrap(second, [], tmp_path / "c2/admin.env", runtime)
    assert everything(tmp_path / "c2") == before and is_member(second)
    # Any controller makes bundles, also for the first one's successor.
    heir = clustered(tmp_path / "new", "c1", "10.0.0.1")
    assert "ready" in install_bundle(heir, make_bundle(second, "c1", ["10.0.0.1"], runtime))
    # A newer one brings new certificates.
    assert "ready" in install_bundle(second, make_bundle(first, "c2", ["10.0.0.2"], runtime))


async def test_authorities_are_made_anew_for_the_same_cloud(
    first: ControllerConfig, second: ControllerConfig, tmp_path: Path, runtime: Runtime
) -> None:
    """When somebody may have a controller's disk: docs/install.md."""
    install_bundle(second, make_bundle(first, "c2", ["10.0.0.2"], runtime))
    password, old = password_in(tmp_path / "admin.env"), certificate.path(first, "ca/ca.pem").read_bytes()
    for config in (first, second):
        for directory in (config.data_dir / "ca", config.tls_dir, config.cluster.etcd_tls_dir):
            directory.rename(directory.with_name(f"{directory.name}.former"))
    told = await bootstrap(first, [], tmp_path / "none.env", runtime)
    assert told.startswith("added: certificate authority, certificate authority of etcd") and "etcd" in told
    assert not (tmp_path / "none.env").exists() and await can_log_in(first, password, runtime)
    assert "ready" in install_bundle(second, make_bundle(first, "c2", ["10.0.0.2"], runtime))
    assert certificate.path(second, "tls/ca.pem").read_bytes() != old
    assert verifies(second, "tls/ca.pem", "sslserver", "tls/node.pem")


async def test_bundle_broken_off_and_repeated(
    first: ControllerConfig, second: ControllerConfig, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(first, "c2", ["10.0.0.2"], runtime)
    write, count = tls.write_private, 0

    def broken(path: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        if count > 3:
            raise RuntimeError("power failure")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(tls, "write_private", broken)
        with pytest.raises(RuntimeError):
            install_bundle(second, bundle)
    assert "ready" in install_bundle(second, bundle)
    assert "nothing" in install_bundle(second, bundle)


async def test_bundles_that_are_refused(
    first: ControllerConfig, second: ControllerConfig, tmp_path: Path, runtime: Runtime
) -> None:
    bundle = make_bundle(first, "c2", ["10.0.0.2"], runtime)
    other = json.loads(bundle) | {"kind": "skyrack controller bundle 2"}
    alone = replace(second, cluster=ClusterConfig(etcd_tls_dir=tmp_path / "etcd"))
    for config, data, told in (
        (clustered(tmp_path / "c3", "c3", "10.0.0.3"), bundle, "for controller c2; this one is c3"),
        (clustered(tmp_path / "c2", "c2", "10.0.0.9"), bundle, "10.0.0.9 is advertised"),
        (alone, bundle, "cluster.etcd is not set"),
        (second, bundle[:-20], "no bundle"),
        (second, b"[]", "no bundle"),
        (second, json.dumps(other).encode(), "another version"),
        (second, json.dumps(json.loads(bundle) | {"files": {"ca/../../x": ""}}).encode(), "no bundle"),
    ):
        with pytest.raises(ConfigError, match=told):
            install_bundle(config, data)
    assert not second.data_dir.exists() or not everything(second.data_dir)
    await bootstrap(second, [], tmp_path / "c2/admin.env", runtime)  # a cloud of its own
    before = everything(tmp_path / "c2")
    with pytest.raises(ConfigError, match="another cloud"):
        install_bundle(second, bundle)
    assert everything(tmp_path / "c2") == before
    for config, name, addresses, told in (
        (first, "c1", ["10.0.0.1"], "is this controller"),
        (first, "c2", [], "--address"),
        (first, "c\u00e42", ["10.0.0.2"], "no host name"),
        (alone, "c3", ["10.0.0.3"], "cluster.etcd is not set"),
        (clustered(tmp_path / "blank", "c1", "10.0.0.1"), "c2", ["10.0.0.2"], "bootstrap"),
    ):
        with pytest.raises(ConfigError, match=told):
            make_bundle(config, name, addresses, runtime)


async def test_as_typed(first: ControllerConfig, second: ControllerConfig, tmp_path: Path) -> None:
    def typed(config: ControllerConfig, *words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        file = tmp_path / f"{config.node}.toml"
        lines = (f"{key} = {json.dumps(str(getattr(config, key)))}" for key in ("node", "data_dir", "tls_dir", "advertise_api"))
        cluster = f"[cluster]\netcd = {json.dumps(config.cluster.etcd)}\netcd_tls_dir = '{config.cluster.etcd_tls_dir}'\n"
        file.write_text("\n".join(lines) + "\n" + cluster)
        argv = [str(Path(sys.prefix) / "bin/skyrack-controllerd"), *words, "--config", str(file)]
        done = subprocess.run(argv, input=stdin, capture_output=True, cwd=tmp_path, timeout=60)
        return done.returncode, done.stdout, done.stderr

    assert typed(first, "bundle", "c2", "--address", "10.0.0.2")[0] == 0
    written = tmp_path / "c2.bundle"
    assert written.stat().st_mode & 0o777 == 0o600
    code, bundle, told = typed(first, "bundle", "c2", "--address", "10.0.0.2", "-o", "-")
    assert code == 0 and b"whoever" in told and json.loads(bundle)["node"] == "c2"
    assert typed(second, "bootstrap", "--bundle", "-", stdin=bundle)[0] == 0
    assert typed(second, "bootstrap", "--bundle", str(written))[:2] != (1, b"")
    assert typed(first, "bootstrap", "--bundle", "c2.bundle")[0] == 1
    gone = b"cannot bootstrap: nowhere: No such file or directory\n"
    assert typed(first, "bootstrap", "--bundle", "nowhere") == (1, b"", gone)
    assert typed(first, "bundle")[0] == 2 and typed(first, "bootstrap", "c2")[0] == 2
