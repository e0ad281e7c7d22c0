"""The backup's file, and what `restore` does with it before anything runs."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from controllerd import certificate, divergence
from controllerd.app.cloud import Cloud
from controllerd.app.cluster import Cluster
from controllerd.bootstrap import bootstrap
from controllerd.config import ClusterConfig, ControllerConfig
from controllerd.domain.policy import SYSTEM
from controllerd.leadership import key
from controllerd.leadership.commit_log import LocalLog
from controllerd.leadership.entry import Diverged
from controllerd.leadership.kv import Kv, Put
from controllerd.leadership.member import Member
from controllerd.leadership.memory import MemoryKv, MemoryStore
from controllerd.restore import from_leader, restore
from controllerd.store import backup, snapshot
from controllerd.store.database import Database
from daemonkit.errors import ConfigError
from daemonkit.lifecycle import DataDirectory
from daemonkit.runtime import InlineThreads, Runtime, ThreadPool
from tests.controllerd.conftest import ManualClock

TAKEN_AT = 1_690_000_000.0


def new_config(home: Path, etcd: bool = False) -> ControllerConfig:
    cluster = ClusterConfig(etcd=["127.0.0.1:1"] if etcd else [], etcd_tls_dir=home / "etcd")
    return ControllerConfig(node="c1", data_dir=home / "data", tls_dir=home / "tls", cluster=cluster)


@pytest.fixture
async def bootstrapped(tmp_path: Path, runtime: Runtime) -> ControllerConfig:
    config = new_config(tmp_path / "old")
    await bootstrap(config, (), tmp_path / "admin.env", runtime)
    return config


@asynccontextmanager
async def opened(config: ControllerConfig, runtime: Runtime) -> AsyncIterator[Database]:
    database = Database(config.data_dir / "state.db", LocalLog(), runtime)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
async def file(tmp_path: Path, bootstrapped: ControllerConfig, runtime: Runtime) -> Path:
    path = tmp_path / "cloud.backup"
    async with opened(bootstrapped, runtime) as database:
        await snapshot.take(database, path)
    files = certificate.present(bootstrapped, certificate.AUTHORITY_FILES)
    backup.seal(path, TAKEN_AT, "1.0", files, random.Random(1).randbytes(backup.MARK_BYTES))
    return path


def names(config: ControllerConfig) -> list[str]:
    return sorted(p.name for p in config.data_dir.glob("state.db*"))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


# ---- the file


def test_it_says_what_it_is(file: Path) -> None:
    about = backup.read(file)
    assert (about.taken_at, about.version, about.epoch) == (TAKEN_AT, "1.0", 2)
    assert set(about.files) == set(certificate.AUTHORITY_FILES) and about.cluster_id
    assert "key" not in repr(about)


def test_any_other_byte_is_noticed(file: Path, tmp_path: Path) -> None:
    good, damaged, dice = file.read_bytes(), tmp_path / "damaged", random.Random(2)
    for place in [0, 20, 99, len(good) - 1, *(dice.randrange(len(good)) for _ in range(60))]:
        content = bytearray(good)
        content[place] ^= 1 << dice.randrange(8)
        damaged.write_bytes(content)
        with pytest.raises(ConfigError):
            backup.read(damaged)
    for cut in (1, 4096, len(good) // 2):
        damaged.write_bytes(good[:-cut])
        with pytest.raises(ConfigError):
            backup.read(damaged)
    damaged.write_bytes(good + b"\0")
    with pytest.raises(ConfigError):
        backup.read(damaged)


def _empty(path: Path) -> None:
    path.touch()


def _text(path: Path) -> None:
    path.write_text("not a database\n" * 100)


def _database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE _backup (name TEXT, value BLOB)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("make", [_empty, _text, _database])
def test_what_is_no_backup_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "other")
    with pytest.raises(ConfigError, match="backup"):
        backup.read(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"No such file|unable to open"):
        backup.read(tmp_path / "nothing")


def test_a_newer_schema_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "migration", type("Older", (), {"migrations": lambda: (), "newest": lambda _known: 1}))
    with pytest.raises(ConfigError, match="install the newer one"):
        backup.read(file)


async def test_a_hash_that_nobody_waits_for_holds_up_nobody_else(
    database: Database, clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, enough = threading.Event(), threading.Event()

    def long(*_args: object) -> None:
        begun.set()
        enough.wait(10)

    monkeypatch.setattr(backup, "seal", long)
    cloud = Cloud(database, Runtime(clock, random.Random(1), ThreadPool))
    cluster = Cluster(cloud, None, None, Member("c1", "", "", "", 1), tmp_path, dict)  # type: ignore[arg-type]
    taking = asyncio.ensure_future(anext(cluster.backup(SYSTEM)))
    await asyncio.to_thread(begun.wait)
    taking.cancel()
    await asyncio.sleep(0.1)
    assert not taking.done()  # and the loop went on
    enough.set()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert "partial" not in str(os.listdir(tmp_path))  # noqa: PTH208


# ---- where it is restored


async def test_a_blank_machine_becomes_the_controller(file: Path, tmp_path: Path, runtime: Runtime, clock: ManualClock) -> None:
    config, before = new_config(tmp_path / "new"), backup.read(file)
    told = await restore(config, file, None, runtime, replace=False)
    assert told.startswith("the cloud is as of 2023-07-22 04:26:40Z")
    for name in ("ca/ca.key", "ca/ca.pem"):
        assert certificate.path(config, name).read_bytes() == before.files[name]
        assert stat.S_IMODE(certificate.path(config, name).stat().st_mode) == 0o600
    assert not certificate.missing(config, certificate.NODE_FILES) and names(config) == ["state.db"]
    assert stat.S_IMODE((config.data_dir / "state.db").stat().st_mode) == 0o600
    async with opened(config, runtime) as database:
        assert database.cluster_id not in ("", before.cluster_id)
        assert database.epoch == int(clock.now_s) << 16  # above all that agents have seen
        assert await database.read(lambda tx: tx.value("SELECT count(*) FROM user")) == 1
        assert not await database.read(lambda tx: tx.value("SELECT 1 FROM sqlite_schema WHERE name = '_backup'"))


async def test_a_mark_of_divergence_goes_with_the_former_state(
    file: Path, bootstrapped: ControllerConfig, runtime: Runtime
) -> None:
    divergence.note(bootstrapped.data_dir / "state.db", Diverged("entry 7"))
    await restore(bootstrapped, file, None, runtime, replace=True)
    divergence.check(bootstrapped.data_dir / "state.db")


async def test_a_state_that_is_there_is_kept_beside(
    file: Path, bootstrapped: ControllerConfig, runtime: Runtime, clock
) -> None:
    with pytest.raises(ConfigError, match="--replace"):
        await restore(bootstrapped, file, None, runtime, replace=False)
    assert names(bootstrapped) == ["state.db"]
    told = await restore(bootstrapped, file, None, runtime, replace=True)
    assert names(bootstrapped) == ["state.db", "state.db.20231114T221320Z"] and "20231114T221320Z" in told
    await restore(bootstrapped, file, None, runtime, replace=True)  # in the same second
    assert len(names(bootstrapped)) == 3
    assert [p.name for p in bootstrapped.data_dir.glob("ca*")] == ["ca"]  # they are the same


async def test_a_later_restore_is_above_an_earlier_one(
    file: Path, tmp_path: Path, runtime: Runtime, clock: ManualClock
) -> None:
    config, epochs = new_config(tmp_path / "new"), []
    for _ in range(2):
        await restore(config, file, None, runtime, replace=True)
        for _start in range(3):
            async with opened(config, runtime) as database:
                epochs.append(database.epoch)
        clock.forward(1)
    assert epochs == sorted(set(epochs))


async def test_what_is_refused_changes_nothing(file: Path, bootstrapped: ControllerConfig, runtime: Runtime) -> None:
    before = (bootstrapped.data_dir / "state.db").read_bytes()
    damage(file)
    with pytest.raises(ConfigError):
        await restore(bootstrapped, file, None, runtime, replace=True)
    assert names(bootstrapped) == ["state.db"] and (bootstrapped.data_dir / "state.db").read_bytes() == before


async def test_a_clock_far_behind_is_refused(
    file: Path, bootstrapped: ControllerConfig, runtime: Runtime, clock: ManualClock
) -> None:
    clock.now_s = TAKEN_AT - 86401
    with pytest.raises(ConfigError, match=r"2023-07-21 04:26:39Z.*2023-07-22 04:26:40Z: set the clock"):
        await restore(bootstrapped, file, None, runtime, replace=True)
    assert names(bootstrapped) == ["state.db"]
    clock.now_s = TAKEN_AT - 3600
    assert "start this controller" in await restore(bootstrapped, file, None, runtime, replace=True)


async def test_files_of_a_backup_land_nowhere_else(bootstrapped: ControllerConfig, tmp_path: Path, runtime: Runtime) -> None:
    file, config = tmp_path / "evil.backup", new_config(tmp_path / "new")
    async with opened(bootstrapped, runtime) as database:
        await snapshot.take(database, file)
    files = certificate.present(bootstrapped, certificate.AUTHORITY_FILES) | {"ca/../../evil": b"not a key"}
    backup.seal(file, TAKEN_AT, "1.0", files, random.Random(1).randbytes(backup.MARK_BYTES))
    with pytest.raises(ConfigError, match="evil"):
        await restore(config, file, None, runtime, replace=False)
    assert not (tmp_path / "new").exists()


async def test_a_running_daemon_is_left_alone(file: Path, bootstrapped: ControllerConfig, runtime: Runtime) -> None:
    running = DataDirectory(bootstrapped.data_dir)
    try:
        with pytest.raises(ConfigError, match="in use"):
            await restore(bootstrapped, file, None, runtime, replace=True)
    finally:
        running.close()


async def test_authorities_of_another_cloud_are_kept_beside(file: Path, tmp_path: Path, runtime: Runtime) -> None:
    """A machine that was bootstrapped for nothing: its certificate is of no use to the nodes."""
    config = new_config(tmp_path / "new")
    await bootstrap(
        config, (), tmp_path / "other.env", Runtime(runtime.clock, random.Random(9), lambda _n, _w: InlineThreads())
    )
    own = certificate.path(config, "tls/node.pem").read_bytes()
    await restore(config, file, None, runtime, replace=True)
    assert certificate.path(config, "ca/ca.pem").read_bytes() == backup.read(file).files["ca/ca.pem"]
    assert certificate.path(config, "tls/ca.pem").read_bytes() == backup.read(file).files["ca/ca.pem"]
    assert certificate.path(config, "tls/node.pem").read_bytes() != own
    assert len(list(config.data_dir.glob("ca.*"))) == 1


# ---- with several controllers


async def log_of(kv: Kv, cluster_id: str) -> None:
    await kv.txn([], [Put(key.CLUSTER, cluster_id.encode()), Put(key.slot(1), b"an entry"), Put(key.slot(2), b"another")])


async def test_the_log_is_emptied_for_the_new_history(file: Path, tmp_path: Path, runtime: Runtime) -> None:
    config, kv = new_config(tmp_path / "new", etcd=True), MemoryKv(MemoryStore())
    await log_of(kv, backup.read(file).cluster_id)
    with pytest.raises(ConfigError, match="--replace"):
        await restore(config, file, kv, runtime, replace=False)
    assert (await kv.range(key.LOG, key.after(key.LOG))).items
    await restore(config, file, kv, runtime, replace=True)
    assert not (await kv.range(key.LOG, key.after(key.LOG))).items
    first = (await kv.range(key.CLUSTER)).items[0].value.decode()
    async with opened(config, runtime) as database:
        assert database.cluster_id == first != backup.read(file).cluster_id
    await restore(config, file, kv, runtime, replace=True)  # the log is now of the history that this machine has
    assert (await kv.range(key.CLUSTER)).items[0].value.decode() != first


async def test_the_log_of_others_is_left_alone(file: Path, tmp_path: Path, runtime: Runtime) -> None:
    config, kv = new_config(tmp_path / "new", etcd=True), MemoryKv(MemoryStore())
    await log_of(kv, "another")
    with pytest.raises(ConfigError, match="another cloud"):
        await restore(config, file, kv, runtime, replace=True)
    await log_of(kv, backup.read(file).cluster_id)
    await kv.txn([], [Put(key.LEADER, b"c2")])
    with pytest.raises(ConfigError, match="leads"):
        await restore(config, file, kv, runtime, replace=True)
    assert len((await kv.range(key.LOG, key.after(key.LOG))).items) == 2 and not names(config)


async def test_the_others_set_their_copies_aside(bootstrapped: ControllerConfig, tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(ConfigError, match="no other controller"):
        from_leader(bootstrapped, runtime)
    several = replace(bootstrapped, cluster=ClusterConfig(etcd=["127.0.0.1:1"], etcd_tls_dir=tmp_path / "etcd"))
    assert "20231114T221320Z" in from_leader(several, runtime)
    assert names(several) == ["state.db.20231114T221320Z"]
    (tmp_path / "admin.env").unlink()
    await bootstrap(several, (), tmp_path / "admin.env", runtime)  # makes no other cloud of it
    assert names(several) == ["state.db.20231114T221320Z"] and not (tmp_path / "admin.env").exists()
    assert from_leader(several, runtime) == "there was no state here"
