"""Schemas roll forward and back: software works on what newer software has left, as far as that says so."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from controllerd.leadership.commit_log import CommitLog, LocalLog
from controllerd.leadership.entry import Kind
from controllerd.store import migration as migrating
from controllerd.store.database import Database
from controllerd.store.digest import digest
from controllerd.store.migration import Migration, migrations, parse
from controllerd.store.replica import Replica
from daemonkit.errors import ConfigError
from daemonkit.runtime import Runtime, system_runtime
from tests.controllerd.server.conftest import make_caller
from tests.controllerd.server.rig import Rig
from tests.controllerd.store.logs import MemoryLog, opened, put

STORE = Path(migrating.__file__).parent
NEXT = migrations()[-1].number + 1
TABLES = sorted({name for m in migrations() for name in re.findall(r"CREATE TABLE (\w+)", m.sql)})
WIDER = "".join(f"ALTER TABLE {table} ADD COLUMN later TEXT NOT NULL DEFAULT 'as ever';\n" for table in TABLES)
READABLE = parse(NEXT, "wider", f"-- readable from schema {NEXT - 1}\n{WIDER}")
UNREADABLE = parse(NEXT, "wider", WIDER)


def newer(step: Migration) -> list[Migration]:
    return [*migrations(), step]


async def brought_up(path: Path, log: CommitLog, step: Migration = READABLE, runtime: Runtime | None = None) -> str:
    """By software that brings `step`; gives the digest."""
    async with opened(path, log, runtime, newer(step)) as database:
        assert database.schema == NEXT
        return await database.read(lambda tx: digest(tx.connection))


def test_the_first_line_tells_who_can_read_it() -> None:
    assert READABLE.readable_from == NEXT - 1 and UNREADABLE.readable_from == NEXT
    assert migrating.of_body(READABLE.body()) == READABLE
    assert [m.number for m in migrations()] == list(range(1, NEXT))


def test_statements_name_their_columns() -> None:
    """Else a column that newer software has added breaks them; REPLACE would also forget what is in it."""
    bad = re.compile(r"SELECT \*|\w\.\*[,\" ]|INTO \w+ (VALUES|SELECT)|OR REPLACE")
    ours = [p for p in STORE.glob("*.py") if p.name not in ("digest.py", "backup.py", "restored.py")]
    assert len(ours) > 20
    assert [(p.name, line) for p in ours for line in p.read_text().splitlines() if bad.search(line)] == []


def test_every_table_can_be_carried_by_the_log() -> None:
    """A declared primary key that can't be NULL, and nothing that does other things on a copy."""
    connection = apsw.Connection(":memory:")
    for step in migrations():
        migrating.apply(connection, step)
    assert not list(connection.execute("SELECT name FROM sqlite_schema WHERE type IN ('trigger', 'view')"))
    for name, without_rowid in connection.execute("SELECT name, wr FROM pragma_table_list WHERE schema = 'main'"):
        if name.startswith("sqlite_"):
            continue
        keys = [row[0] for row in connection.execute("SELECT type FROM pragma_table_info(?) WHERE pk", (name,))]
        assert keys == ["INTEGER"] or (keys and without_rowid), name
    connection.close()


@pytest.fixture(params=["local", "replicated"])
def commit_log(request: pytest.FixtureRequest) -> Callable[[], CommitLog]:
    entries = MemoryLog().entries
    return LocalLog if request.param == "local" else lambda: MemoryLog(entries)


@pytest.fixture
async def rig(tmp_path: Path, runtime: Runtime, clock: Any, commit_log: Callable[[], CommitLog]) -> AsyncIterator[Rig]:
    await brought_up(tmp_path / "db", commit_log(), runtime=runtime)
    rig = Rig(tmp_path / "db", runtime, clock, commit_log)
    await rig.open()
    yield rig
    await rig.close()


async def test_todays_software_on_tomorrows_schema(rig: Rig, tmp_path: Path) -> None:
    """A server with a volume: made, restarted in, deleted; in every table newer software's column keeps what is in it."""
    tenant = await make_caller(rig, "alpha", "member")
    flavor, image = await rig.equip(tenant)
    volume_id = await rig.add_volume(tenant)
    await rig.database.write(lambda tx: [tx.run(f"UPDATE {table} SET later = 'kept'") for table in TABLES])
    view = await rig.create(tenant, flavor, image, volume_ids=(volume_id,), user_data=b"#!/bin/sh")
    await rig.run()
    assert (await rig.servers.get(tenant, view.server.id)).state == "ACTIVE"
    assert rig.database.schema == NEXT
    await rig.crash()
    await rig.servers.delete(tenant, view.server.id)
    await rig.run()
    assert await rig.leftovers() == {}
    for table in ("agent", "node", "volume", "network", "subnet"):
        assert {row["later"] for row in await rig.rows(f"SELECT later FROM {table}")} == {"kept"}, table
    log = rig.commit_log()
    if isinstance(log, MemoryLog):
        replica = Replica(tmp_path / "copy", system_runtime())  # of today's software
        await replica.open()
        await replica.apply(log.entries)
        assert await replica.digest() == await rig.database.read(lambda tx: digest(tx.connection))
        assert replica.position == rig.database.position
        await replica.close()


async def test_rolled_forward_back_and_forward_again(tmp_path: Path, commit_log: Callable[[], CommitLog]) -> None:
    async with opened(tmp_path / "db", commit_log()) as database:
        await database.write(put("old"))
        identity = database.cluster_id
    for round_ in range(2):
        await brought_up(tmp_path / "db", commit_log())
        async with opened(tmp_path / "db", commit_log()) as database:
            await database.write(put(f"back-{round_}"))
            assert (database.schema, database.position.readable_from) == (NEXT, NEXT - 1)
            assert database.cluster_id == identity
            told = await database.read(lambda tx: [row["later"] for row in tx.all("SELECT later FROM project")])
            assert told == ["as ever"] * (2 + round_)
    log = commit_log()
    if isinstance(log, MemoryLog):
        assert [e.kind for e in log.entries].count(Kind.MIGRATION) == NEXT


async def test_a_schema_that_older_software_cannot_read(tmp_path: Path) -> None:
    log = MemoryLog()
    await brought_up(tmp_path / "db", log, UNREADABLE)
    with pytest.raises(ConfigError, match="newer software"):
        await Database(tmp_path / "db", LocalLog(), system_runtime()).open()
    with pytest.raises(ConfigError, match="newer software"):
        await Replica(tmp_path / "db", system_runtime()).open()
    behind = Replica(tmp_path / "copy", system_runtime())
    await behind.open()
    with pytest.raises(ConfigError, match="newer software"):
        await behind.apply(log.entries)
    assert behind.position.schema == 0  # nothing of it is kept, and after an upgrade it goes on
    await behind.close()
    upgraded = Replica(tmp_path / "copy", system_runtime(), newer(UNREADABLE))
    await upgraded.open()
    await upgraded.apply(log.entries)
    assert upgraded.position.schema == NEXT
    await upgraded.close()


async def test_what_a_copy_needs_others_to_know(tmp_path: Path) -> None:
    await brought_up(tmp_path / "db", LocalLog(), READABLE)
    later = parse(NEXT + 1, "later", f"-- readable from schema {NEXT}\nCREATE TABLE later (id TEXT PRIMARY KEY) WITHOUT ROWID")
    last = parse(NEXT + 2, "last", "DROP TABLE later")
    for known, needed in ((newer(READABLE), 0), ([*newer(READABLE), later], NEXT), ([*newer(READABLE), later, last], NEXT + 2)):
        replica = Replica(tmp_path / "db", system_runtime(), known)
        await replica.open()
        assert replica.needed_schema == needed
        await replica.close()


async def test_what_cannot_be_read_once_stays_so_under_later_migrations(tmp_path: Path) -> None:
    later = parse(
        NEXT + 1, "more", f"-- readable from schema {NEXT - 1}\nCREATE TABLE more (id TEXT PRIMARY KEY) WITHOUT ROWID"
    )
    async with opened(tmp_path / "db", known=[*newer(UNREADABLE), later]) as database:
        assert database.position.readable_from == NEXT
    with pytest.raises(ConfigError):
        await Database(tmp_path / "db", LocalLog(), system_runtime()).open()


@pytest.mark.parametrize("sql", ["ALTER TABLE nowhere ADD COLUMN x", "INSERT INTO role_assignment VALUES ('u', 'p', 'r')"])
async def test_a_migration_that_fails_leaves_nothing(tmp_path: Path, commit_log: Callable[[], CommitLog], sql: str) -> None:
    async with opened(tmp_path / "db", commit_log()) as database:
        before = await database.read(lambda tx: digest(tx.connection))
    broken = parse(NEXT, "broken", f"CREATE TABLE half (id TEXT PRIMARY KEY) WITHOUT ROWID; {sql}")
    with pytest.raises(ConfigError):
        await Database(tmp_path / "db", commit_log(), system_runtime(), newer(broken)).open()
    async with opened(tmp_path / "db", commit_log()) as database:
        assert await database.read(lambda tx: digest(tx.connection)) == before
        with pytest.raises(apsw.ConstraintError):  # foreign keys are on again
            await database.write(lambda tx: tx.run("INSERT INTO role_assignment VALUES ('u', 'p', 'r')"))
