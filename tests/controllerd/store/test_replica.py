"""A replica: the same as its leader after whatever happened there; what does not fit is noticed, and nothing of it kept."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllerd.leadership.entry import Diverged, Entry, Kind
from controllerd.store import snapshot
from controllerd.store.database import Tx
from controllerd.store.digest import digest
from controllerd.store.migration import parse
from controllerd.store.replica import ENTRIES_MAX, Replica
from daemonkit.errors import ConfigError, Unavailable
from daemonkit.runtime import InlineThreads, Runtime, SystemClock, system_runtime
from tests.controllerd.store.logs import MemoryLog, opened, put

# Shapes of tables that a changeset could go wrong with: values swapped under a unique index, NULLs, blobs, cascades.
SCHEMA = [
    parse(1, "first", """
        CREATE TABLE counted (seq INTEGER PRIMARY KEY, what TEXT, size REAL);
        CREATE TABLE named (id TEXT PRIMARY KEY, slot INTEGER UNIQUE, body BLOB) WITHOUT ROWID;
        CREATE INDEX named_body ON named(body);
        CREATE TABLE member (a TEXT NOT NULL, b INTEGER NOT NULL, note TEXT NOT NULL DEFAULT '', named_id TEXT
          REFERENCES named(id) ON DELETE CASCADE, PRIMARY KEY (a, b)) WITHOUT ROWID;
    """),
    parse(2, "second", "ALTER TABLE counted ADD COLUMN later TEXT; INSERT INTO counted (seq, what) VALUES (1000, 'made');"),
]  # fmt: skip
IDS = st.sampled_from("abcde")
SLOTS = st.one_of(st.none(), st.integers(0, 4))
VALUES = st.one_of(st.none(), st.text(max_size=3), st.binary(max_size=3), st.integers(-(2**63), 2**63 - 1), st.floats())
STATEMENTS = st.one_of(
    st.tuples(st.just("INSERT INTO counted (what, size, later) VALUES (?, ?, ?)"), st.tuples(VALUES, VALUES, VALUES)),
    st.tuples(st.just("UPDATE counted SET what = ?, size = size + 1 WHERE seq % 3 = ?"), st.tuples(VALUES, st.integers(0, 2))),
    st.tuples(st.just("DELETE FROM counted WHERE seq = (SELECT max(seq) FROM counted)"), st.just(())),
    st.tuples(st.just("INSERT OR REPLACE INTO named (id, slot, body) VALUES (?, ?, ?)"), st.tuples(IDS, SLOTS, VALUES)),
    st.tuples(st.just("INSERT INTO named (id, slot, body) VALUES (?, ?, ?)"), st.tuples(IDS, SLOTS, VALUES)),
    st.tuples(st.just("UPDATE named SET slot = -slot"), st.just(())),
    st.tuples(st.just("UPDATE named SET slot = (?1 - slot) WHERE slot IS NOT NULL"), st.tuples(st.integers(3, 4))),
    st.tuples(st.just("UPDATE named SET id = ? WHERE id = ?"), st.tuples(IDS, IDS)),
    st.tuples(st.just("DELETE FROM named WHERE id = ?"), st.tuples(IDS)),
    st.tuples(st.just("INSERT INTO member (a, b, named_id) VALUES (?, ?, ?)"), st.tuples(IDS, st.integers(0, 2), IDS)),
    st.tuples(st.just("UPDATE member SET b = b + 1, note = ? WHERE a = ?"), st.tuples(st.text(max_size=2), IDS)),
)  # fmt: skip
# "inner": the statement alone is undone when it fails; "keep": it fails the transaction; "undo": undone although it worked.
ACTS = st.lists(st.tuples(st.sampled_from(["inner", "keep", "undo"]), STATEMENTS), max_size=6)
GROUPS = st.lists(st.lists(st.tuples(ACTS, st.booleans()), min_size=1, max_size=4), max_size=6)


class Undone(Exception):
    pass


def transaction(acts: list[tuple[str, tuple[str, tuple[Any, ...]]]], fails: bool) -> Callable[[Tx], None]:
    def run(tx: Tx) -> None:
        for how, (sql, values) in acts:
            if how == "keep":
                tx.run(sql, *values)
                continue
            with suppress(apsw.Error, Undone), tx.savepoint():
                tx.run(sql, *values)
                if how == "undo":
                    raise Undone
        if fails:
            raise Undone

    return run


def inline_runtime() -> Runtime:
    return Runtime(SystemClock(), random.Random(1), lambda _name, _workers: InlineThreads())


@settings(max_examples=60, deadline=None)
@given(GROUPS)
def test_a_replica_ends_up_the_same(groups: Any) -> None:
    async def live(directory: Path) -> None:
        log = MemoryLog()
        following, late = (Replica(directory / name, inline_runtime(), SCHEMA) for name in ("following", "late"))
        await following.open()
        async with opened(directory / "db", log, inline_runtime(), SCHEMA) as database:
            await following.apply(log.entries)
            for group in groups:
                writes = [database.write(transaction(acts, fails)) for acts, fails in group]
                await asyncio.gather(*writes, return_exceptions=True)
                await following.apply([e for e in log.entries if e.seq > following.position.seq])
            expected = await database.read(lambda tx: digest(tx.connection))
            await late.open()
            await late.apply(log.entries)
            for replica in (following, late):
                assert await replica.digest() == expected
                assert replica.position == database.position
                await replica.close()

    with tempfile.TemporaryDirectory(prefix="replica-") as directory:
        asyncio.run(live(Path(directory)))


async def leader_and_log(path: Path, writes: int = 3) -> MemoryLog:
    log = MemoryLog()
    async with opened(path, log) as database:
        for n in range(writes):
            await database.write(put(f"p{n}"))
    return log


async def replica_of(path: Path, entries: list[Entry]) -> Replica:
    replica = Replica(path, system_runtime())
    await replica.open()
    await replica.apply(entries)
    return replica


def companions(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir() if p.name.startswith(path.name) and p != path]


def tampered(path: Path, sql: str) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(sql)
    connection.close()


FOREIGN = "11111111-2222-4333-8444-555555555555"
WRONG: dict[str, Callable[[Entry], Entry]] = {
    "a gap": lambda e: replace(e, seq=e.seq + 1),
    "an older epoch": lambda e: replace(e, epoch=e.epoch - 1),
    "a newer epoch without its barrier": lambda e: replace(e, epoch=e.epoch + 1),
    "a barrier of the same epoch": lambda e: replace(e, kind=Kind.BARRIER, body=b""),
    "a barrier of another cloud": lambda e: replace(e, kind=Kind.BARRIER, epoch=e.epoch + 1, body=FOREIGN.encode()),
    "another schema": lambda e: replace(e, schema=e.schema + 1),
    "fewer rows": lambda e: replace(e, rows=e.rows + 1),
    "more rows": lambda e: replace(e, rows=e.rows - 1),
    "a damaged changeset": lambda e: replace(e, body=b"T\x05\x01" + b"x" * 40),
    "half a changeset": lambda e: replace(e, body=e.body[: len(e.body) // 2]),
    "a migration that is none": lambda e: replace(e, kind=Kind.MIGRATION, body=b"{}"),
    "a migration backwards": lambda e: replace(e, kind=Kind.MIGRATION, body=parse(1, "x", "").body()),
}


@pytest.mark.parametrize("how", WRONG)
async def test_an_entry_that_does_not_fit(tmp_path: Path, how: str) -> None:
    log = await leader_and_log(tmp_path / "db")
    *before, last = log.entries
    replica = await replica_of(tmp_path / "copy", before)
    at, held = replica.position, await replica.digest()
    with pytest.raises(Diverged):
        await replica.apply([WRONG[how](last)])
    assert replica.position == at and await replica.digest() == held
    with pytest.raises(Diverged):  # for good, whatever comes
        await replica.apply([last])
    await replica.close()
    await replica.open()
    assert replica.position == at
    await replica.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE project SET description = 'other'",
        "DELETE FROM project",
        "INSERT INTO project VALUES ('p', 'new', '', 1, 0)",
        "DROP TABLE event",
        "ALTER TABLE project DROP COLUMN description",
        "ALTER TABLE project ADD COLUMN more TEXT",
        "PRAGMA user_version = 1",
    ],
)
async def test_a_copy_that_is_not_what_it_should_be(tmp_path: Path, sql: str) -> None:
    def edit(tx: Tx) -> None:
        put("new")(tx)
        tx.run("UPDATE project SET description = 'changed' WHERE name = 'p0'")
        tx.run("INSERT INTO event (time, kind, project_id, resource_kind, resource_id, message, request_id, user_id, data)"
               " VALUES (1, 'a.b', '', 'a', 'x', 'm', '', '', '{}')")  # fmt: skip

    log = await leader_and_log(tmp_path / "db")
    replica = await replica_of(tmp_path / "copy", log.entries)
    await replica.close()
    async with opened(tmp_path / "db", log) as database:
        await database.write(edit)
    tampered(tmp_path / "copy", sql)
    await replica.open()
    with pytest.raises(Diverged):
        await replica.apply([e for e in log.entries if e.seq > replica.position.seq])
    await replica.close()


async def test_the_entry_that_it_has_already_is_compared(tmp_path: Path) -> None:
    log = await leader_and_log(tmp_path / "db")
    replica = await replica_of(tmp_path / "copy", log.entries)
    await replica.apply(log.entries[-1:])
    with pytest.raises(Diverged, match="not the one"):
        await replica.apply([replace(log.entries[-1], batch=b"0" * 16)])
    await replica.close()


async def test_many_entries_at_once(tmp_path: Path) -> None:
    log = await leader_and_log(tmp_path / "db", ENTRIES_MAX + 20)
    replica = await replica_of(tmp_path / "copy", log.entries)
    async with opened(tmp_path / "db", log) as database:
        await replica.apply(log.entries[-1:])
        assert await replica.digest() == await database.read(lambda tx: digest(tx.connection))
    await replica.close()


# ---- snapshots


async def test_a_snapshot_taken_under_load_and_the_rest_of_the_log(tmp_path: Path) -> None:
    log = MemoryLog()
    replica = await replica_of(tmp_path / "copy", [])
    assert replica.position.blank
    async with opened(tmp_path / "db", log) as database:
        await asyncio.gather(*(database.write(put(f"p{n}")) for n in range(200)))
        load = [asyncio.create_task(database.write(put(f"q{n}"))) for n in range(300)]
        await load[100]
        taken = await snapshot.take(database, tmp_path / "snapshot")
        await asyncio.gather(*load)
        await database.write(put("last"))
        target = tmp_path / "snapshot"
        assert target.stat().st_mode & 0o777 == 0o600 and target.stat().st_size == taken.size_bytes
        assert companions(target) == []
        await replica.install(target)
        assert not target.exists() and replica.position == taken.position and not replica.position.blank
        assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600
        await replica.apply([e for e in log.entries if e.seq > taken.position.seq])
        assert await replica.digest() == await database.read(lambda tx: digest(tx.connection))
        assert replica.position == database.position
        with pytest.raises(FileExistsError):
            await snapshot.take(database, tmp_path / "db")
    await replica.close()


async def test_nothing_is_left_of_a_snapshot_that_nobody_gets(tmp_path: Path) -> None:
    log = await leader_and_log(tmp_path / "db")
    async with opened(tmp_path / "db", log) as database:
        log.leading = False
        with pytest.raises(Unavailable):
            await snapshot.take(database, tmp_path / "snapshot")
        log.leading = True
        for step in range(20):  # the thread is somewhere in the middle then
            taking = asyncio.create_task(snapshot.take(database, tmp_path / f"snapshot-{step}"))
            await asyncio.sleep(step / 2000)
            taking.cancel()
            await asyncio.wait([taking])
            if not taking.cancelled():
                (tmp_path / f"snapshot-{step}").unlink()
    assert not _snapshots(tmp_path)


def _snapshots(directory: Path) -> list[Path]:
    return list(directory.glob("snapshot*"))


async def test_a_snapshot_heals_a_copy_that_has_diverged(tmp_path: Path) -> None:
    log = await leader_and_log(tmp_path / "db")
    replica = await replica_of(tmp_path / "copy", log.entries[:-1])
    with pytest.raises(Diverged):
        await replica.apply([replace(log.entries[-1], rows=99)])
    async with opened(tmp_path / "db", log) as database:
        await snapshot.take(database, tmp_path / "snapshot")
        await replica.install(tmp_path / "snapshot")
        assert replica.position == database.position
    await replica.close()


async def test_a_snapshot_that_is_none_of_ours(tmp_path: Path) -> None:
    log = await leader_and_log(tmp_path / "db")
    replica = await replica_of(tmp_path / "copy", log.entries)
    held = await replica.digest()
    await leader_and_log(tmp_path / "foreign")
    async with opened(tmp_path / "foreign") as database:
        await snapshot.take(database, tmp_path / "of another cloud")
    async with opened(tmp_path / "db", log) as database:
        await snapshot.take(database, tmp_path / "newer")
        await snapshot.take(database, tmp_path / "damaged")
    tampered(tmp_path / "newer", "PRAGMA user_version = 9999; UPDATE _log SET readable_from = 9999")
    with (tmp_path / "damaged").open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 4096)
    (tmp_path / "no database").write_bytes(b"nothing" * 1000)
    tampered(tmp_path / "another program's", "CREATE TABLE t (x)")
    for name, error in {"of another cloud": Diverged, "newer": ConfigError, "damaged": Diverged, "no database": Diverged,
                        "another program's": Diverged, "not there": Diverged}.items():  # fmt: skip
        with pytest.raises(error):
            await replica.install(tmp_path / name)
        assert await replica.digest() == held
    await replica.close()
