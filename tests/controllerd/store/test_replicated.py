"""The store over a replicated log: when something counts, what is told to whom, and that a replica ends up the same."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import apsw
import pytest

from controllerd.leadership.entry import Kind, encode
from controllerd.store.database import Database, Tx
from controllerd.store.digest import digest
from controllerd.store.replica import Replica
from controllerd.store.writer import ENTRY_BYTES_MAX, GROUP_BYTES_MAX
from daemonkit.errors import Fenced, SkyrackError, TooLarge, Unavailable
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


async def test_what_is_too_large_for_the_log_fails_alone(tmp_path: Path) -> None:
    log = MemoryLog()
    async with opened(tmp_path / "db", log) as database:
        await database.write(put("before"))
        log.refusal = TooLarge("too many bytes")
        with pytest.raises(TooLarge):
            await database.write(put("large"))
        log.refusal = None
        await database.write(put("after"))
        assert await names(database) == {"before", "after"}
        replica = await copy_of(log, tmp_path / "copy")
        assert replica.position == database.position
        await replica.close()


async def test_a_barrier_that_is_refused(tmp_path: Path) -> None:
    log = MemoryLog()
    log.refusal = Fenced("another one leads")
    with pytest.raises(Fenced):
        await Database(tmp_path / "db", log, system_runtime()).open()
    log.refusal = None
    async with opened(tmp_path / "db", log) as database:
        assert log.entries[0].kind == Kind.BARRIER and log.entries[0].body.decode() == database.cluster_id


async def test_the_end_waits_for_an_append_under_way(tmp_path: Path) -> None:
    log = MemoryLog()
    database = Database(tmp_path / "db", log, system_runtime())
    await database.open()
    commits = asyncio.create_task(database.run())
    log.gate.clear()
    log.waiting.clear()
    under_way = asyncio.create_task(database.write(put("under way")))
    await log.waiting.wait()
    waiting = asyncio.create_task(database.write(put("waiting")))
    await asyncio.sleep(0)
    commits.cancel()
    await asyncio.sleep(0.05)
    assert not commits.done() and not under_way.done()
    log.gate.set()
    assert await under_way == 1
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(asyncio.CancelledError):
        await commits
    await database.close()
    replica = await copy_of(log, tmp_path / "db")
    assert replica.position.seq == log.entries[-1].seq
    await replica.close()


async def test_the_end_while_an_append_is_refused(tmp_path: Path) -> None:
    log = MemoryLog()
    async with opened(tmp_path / "db", log) as database:
        log.gate.clear()
        log.waiting.clear()
        under_way = asyncio.create_task(database.write(put("under way")))
        await log.waiting.wait()
        log.refusal = Unavailable("no quorum")
        asyncio.get_running_loop().call_later(0.05, log.gate.set)
    with pytest.raises(Unavailable, match="no quorum"):
        await under_way


async def test_nothing_is_told_by_who_may_not_lead_any_more(tmp_path: Path) -> None:
    """Neither what a read has found, nor that there is nothing, nor what a transaction saw that changed nothing."""

    def missing(tx: Tx) -> None:
        raise KeyError("no such thing")

    log = MemoryLog()
    async with opened(tmp_path / "db", log) as database:
        await database.write(put("a"))
        log.leading = False
        for told in (lambda tx: 1, missing):
            with pytest.raises(Unavailable):
                await database.read(told)
            with pytest.raises(Unavailable):
                await database.write(told)
        log.leading = True
        assert await database.write(put("b")) == 1
        with pytest.raises(KeyError):
            await database.read(missing)


async def test_a_commit_that_fails_after_its_append_ends_all(tmp_path: Path) -> None:
    """The log has it, so it counts: who was not told finds it done, and this file is played on from the log."""
    log = MemoryLog()
    database = Database(tmp_path / "db", log, system_runtime())
    await database.open()
    commits = asyncio.create_task(database.run())
    await database.write(put("before"))

    def refuse_commit() -> None:
        database._writer._db.set_commit_hook(lambda: True, id=database)

    log.gate.clear()
    log.waiting.clear()
    under_way = asyncio.create_task(database.write(put("under way")))
    await log.waiting.wait()
    refuse_commit()
    log.gate.set()
    with pytest.raises(Unavailable, match="cannot write"):
        await under_way
    with pytest.raises(Unavailable):
        await commits
    with pytest.raises(Unavailable):
        await database.write(put("after"))
    await database.close()
    replica = await copy_of(log, tmp_path / "db")
    assert replica.position.seq == log.entries[-1].seq
    await replica.close()
    async with opened(tmp_path / "db", log) as again:
        assert await names(again) == {"before", "under way"}


# ---- sizes


def bulky(name: str, noise: bytes) -> object:
    sql = "INSERT INTO agent_task (id, node_id, agent_kind, body, created_at, deadline, ended, ok, reason, fault)"
    return lambda tx: tx.run(f"{sql} VALUES (?, 'n', 'k', ?, 0, 0, 0, 0, '', '')", name, noise)


async def test_one_transaction_that_is_too_large_fails_alone(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(ENTRY_BYTES_MAX)
    log = MemoryLog()
    async with opened(tmp_path / "db", log) as database:
        writes = [put("a"), bulky("large", noise), put("b"), bulky("fits", noise[: ENTRY_BYTES_MAX // 2]), put("c"),
                  bulky("packs well", b"x" * 4 * ENTRY_BYTES_MAX)]  # fmt: skip
        told = await asyncio.gather(*(database.write(w) for w in writes), return_exceptions=True)
        assert [type(t) for t in told] == [int, TooLarge, int, int, int, int]
        assert "1400000" in str(told[1])
        assert {r["id"] for r in await database.read(lambda tx: tx.all("SELECT id FROM agent_task"))} == {"fits", "packs well"}
        replica = await copy_of(log, tmp_path / "copy")
        assert await replica.digest() == await database.read(lambda tx: digest(tx.connection))
        await replica.close()


async def test_a_group_ends_when_it_is_large_enough(tmp_path: Path) -> None:
    random_ = random.Random(1)
    log = MemoryLog()
    async with opened(tmp_path / "db", log) as database:
        before = len(log.entries)
        writes = [bulky(str(n), random_.randbytes(GROUP_BYTES_MAX // 10)) for n in range(100)]
        await asyncio.gather(*(database.write(w) for w in writes))
        sizes = [len(encode(e)) for e in log.entries[before:]]
        assert 9 <= len(sizes) <= 14 and max(sizes) < 2 * GROUP_BYTES_MAX


async def test_a_local_log_knows_no_limit(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as database:
        await database.write(bulky("large", random.Random(1).randbytes(2 * ENTRY_BYTES_MAX)))
