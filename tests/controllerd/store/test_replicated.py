"""The store over a replicated log: when something counts, what is told to whom, and that a replica ends up the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import apsw
import pytest

from controllerd.leadership.entry import Kind
from controllerd.store.database import Database, Tx
from controllerd.store.digest import digest
from controllerd.store.replica import Replica
from daemonkit.errors import Fenced, SkyrackError, Unavailable
from daemonkit.runtime import system_runtime
from tests.controllerd.store.logs import MemoryLog, names, opened, put


def edit(tx: Tx) -> None:
    tx.run("UPDATE project SET description = 'changed' WHERE name = 'p3'")
    tx.run("DELETE FROM project WHERE name = 'p4'")
    tx.run("INSERT INTO event (time, kind, project_id, resource_kind, resource_id, message, request_id, user_id, data)"
           " VALUES (1, 'a.b', '', 'a', 'x', 'm', '', '', '{}')")  # fmt: skip


async def copy_of(log: MemoryLog, path: Path) -> Replica:
    replica = Replica(path, system_runtime())
    await replica.open()
    await replica.apply([e for e in log.entries if e.seq >= replica.position.seq])
    return replica


async def test_a_log_makes_an_identical_copy(tmp_path: Path) -> None:
    log = MemoryLog()
    async with opened(tmp_path / "db", log) as database:
        await asyncio.gather(*(database.write(put(f"p{n}")) for n in range(50)))
        with pytest.raises(apsw.ConstraintError):
            await database.write(put("p1"))
        await database.write(edit)
        before = len(log.entries)
        await database.write(lambda tx: tx.touch("nothing"))
        await database.write(lambda tx: tx.run("UPDATE project SET name = name"))
        assert len(log.entries) == before and database.epoch == 41
        assert [e.seq for e in log.entries] == list(range(1, len(log.entries) + 1))
        kinds = [e.kind for e in log.entries]
        assert kinds[0] == Kind.BARRIER and set(kinds[1 : 1 + database.schema]) == {Kind.MIGRATION}
        assert set(kinds[1 + database.schema :]) == {Kind.CHANGES}
        replica = await copy_of(log, tmp_path / "copy")
        assert replica.position == database.position and replica.position.cluster_id
        assert await replica.digest() == await database.read(lambda tx: digest(tx.connection))
        await replica.close()


@pytest.mark.parametrize("refusal", [Fenced("an older epoch"), Unavailable("no quorum")])
@pytest.mark.parametrize("taken", [False, True])
async def test_a_log_that_refuses_ends_writing_for_good(tmp_path: Path, refusal: SkyrackError, taken: bool) -> None:
    log = MemoryLog()
    database = Database(tmp_path / "db", log, system_runtime())
    await database.open()
    commits = asyncio.create_task(database.run())
    await database.write(put("before"))
    log.refusal, log.taken_all_the_same = refusal, taken
    both = await asyncio.gather(database.write(put("a")), database.write(put("b")), return_exceptions=True)
    assert both == [refusal, refusal]
    with pytest.raises(type(refusal)):
        await commits
    log.refusal = None
    for refused in (database.write(put("c")), database.read(lambda tx: 1)):
        with pytest.raises(type(refusal)):
            await refused
    await database.close()
    replica = await copy_of(log, tmp_path / "db")
    await replica.close()
    async with opened(tmp_path / "db", MemoryLog(log.entries)) as again:
        assert await names(again) == ({"before", "a", "b"} if taken else {"before"})
        assert again.epoch == 42
