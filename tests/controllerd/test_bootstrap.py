"""Bootstrap: once, twice, broken off, and beside a running controller."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography import x509

from controllerd import bootstrap as module
from controllerd.app.cloud import Cloud
from controllerd.app.login import Login, Passwords
from controllerd.bootstrap import FLAVORS_AT_FIRST, bootstrap
from controllerd.config import ControllerConfig
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


@pytest.mark.parametrize("at", ["write_private", "_insert", "issue_own"])
async def test_broken_off_and_repeated(
    config: ControllerConfig, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    env = tmp_path / "admin.env"

    def broken(*_args: object) -> None:
        raise RuntimeError("power failure")

    with monkeypatch.context() as patch:
        patch.setattr(module.tls if at == "write_private" else module, at, broken)
        with pytest.raises(RuntimeError):
            await bootstrap(config, [], env, runtime)
    assert "ready" in await bootstrap(config, [], env, runtime)
    assert await can_log_in(config, password_in(env), runtime)


async def test_not_beside_a_running_controller(config: ControllerConfig, tmp_path: Path, runtime: Runtime) -> None:
    held = DataDirectory(config.data_dir)
    with pytest.raises(ConfigError):
        await bootstrap(config, [], tmp_path / "admin.env", runtime)
    held.close()
