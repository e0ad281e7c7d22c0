"""The store: what a commit means, and what happens when it fails."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from controllerd.leadership.commit_log import LocalLog
from controllerd.store.database import Database, Tx
from daemonkit.errors import ConfigError, Unavailable
from daemonkit.lifecycle import DataDirectory
from daemonkit.runtime import system_runtime
from tests.controllerd.store.logs import LIMIT_S, names, opened, put


async def test_an_error_undoes_its_own_transaction_only(tmp_path: Path) -> None:
    def broken(tx: Tx) -> None:
        put("no")(tx)
        tx.touch("no")
        raise ValueError("mine")

    async with opened(tmp_path / "db") as database:
        seen: list[set[str]] = []
        database.subscribe(seen.append)
        good = [database.write(put(f"p{n}")) for n in range(5)]
        results = await asyncio.gather(*good, database.write(broken), database.write(put("last")), return_exceptions=True)
        assert [type(r) for r in results] == [int] * 5 + [ValueError, int]
        assert await names(database) == {"p0", "p1", "p2", "p3", "p4", "last"}
        assert all("no" not in touched for touched in seen)


async def test_a_subscriber_that_raises_stops_nobody(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as database:
        seen: list[set[str]] = []

        def bad(touched: set[str]) -> None:
            raise RuntimeError("bug")

        database.subscribe(bad)
        database.subscribe(seen.append)
        for n in range(3):
            await database.write(lambda tx, n=n: tx.touch(f"r{n}"))
        assert seen == [{"r0"}, {"r1"}, {"r2"}]


async def test_who_stops_waiting_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as database:
        entered, go_on = threading.Event(), threading.Event()

        def slow(tx: Tx) -> None:
            put("slow")(tx)
            entered.set()
            assert go_on.wait(LIMIT_S)

        first = asyncio.create_task(database.write(slow))
        await asyncio.to_thread(entered.wait, LIMIT_S)
        second = asyncio.create_task(database.write(put("second")))
        await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        go_on.set()
        await database.write(put("third"))
        assert await names(database) == {"slow", "second", "third"}


async def test_the_end_of_the_loop_answers_everybody(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", LocalLog(), system_runtime())
    await database.open()
    commits = asyncio.create_task(database.run())
    entered, go_on = threading.Event(), threading.Event()

    def slow(tx: Tx) -> None:
        put("slow")(tx)
        entered.set()
        assert go_on.wait(LIMIT_S)

    under_way = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(entered.wait, LIMIT_S)
    waiting = asyncio.create_task(database.write(put("late")))
    await asyncio.sleep(0)
    commits.cancel()
    await asyncio.sleep(0.05)
    assert not under_way.done()
    go_on.set()
    assert await under_way is None  # it was committed, so it is told so
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(asyncio.CancelledError):
        await commits
    await database.close()
    for refused in (database.write(put("x")), database.read(lambda tx: 1)):
        with pytest.raises(Unavailable):
            await refused
    async with opened(tmp_path / "db") as again:
        assert await names(again) == {"slow"}


async def test_many_readers_beside_a_writer(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as database:
        counts: list[int] = []

        async def read() -> None:
            for _ in range(50):
                counts.append(await database.read(lambda tx: tx.value("SELECT count(*) FROM project")))

        writes = [database.write(put(f"p{n}")) for n in range(300)]
        await asyncio.gather(*(read() for _ in range(10)), *writes)
        assert len(counts) == 500 and max(counts) <= 300
        assert len(await names(database)) == 300
        with pytest.raises(apsw.ReadOnlyError):
            await database.read(put("by a reader"))


async def test_who_keeps_a_cursor_keeps_no_reader_at_an_old_state(tmp_path: Path) -> None:
    def leave_open(tx: Tx) -> apsw.Cursor:
        cursor = tx.connection.execute("SELECT name FROM project")
        next(cursor)
        return cursor

    async with opened(tmp_path / "db") as database:
        await asyncio.gather(*(database.write(put(name)) for name in ("first", "second")))
        kept = [await database.read(leave_open) for _ in range(4)]
        await database.write(put("third"))
        assert [await names(database) for _ in range(4)] == [{"first", "second", "third"}] * 4
        del kept


async def test_every_start_raises_the_epoch(tmp_path: Path) -> None:
    epochs = []
    for _ in range(3):
        async with opened(tmp_path / "db") as database:
            epochs.append(database.epoch)
    assert epochs == [1, 2, 3]
    assert (tmp_path / "db").stat().st_mode & 0o777 == 0o600


async def test_a_damaged_or_newer_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError):
        await Database(tmp_path / "damaged", LocalLog(), system_runtime()).open()
    connection = apsw.Connection(str(tmp_path / "newer"))
    connection.execute("PRAGMA user_version=9999")
    connection.close()
    with pytest.raises(ConfigError, match="9999"):
        await Database(tmp_path / "newer", LocalLog(), system_runtime()).open()


def test_two_processes_on_one_data_directory(tmp_path: Path) -> None:
    held = DataDirectory(tmp_path)
    with pytest.raises(ConfigError):
        DataDirectory(tmp_path)
    held.close()
    DataDirectory(tmp_path).close()


async def test_a_file_that_may_not_grow_costs_one_group(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as database:
        await database.write(put("before"))
        pages = await database.write(lambda tx: tx.value("PRAGMA page_count"))
        await database.write(lambda tx: tx.value(f"PRAGMA max_page_count={pages}"))

        def large(tx: Tx) -> None:
            for n in range(1000):
                put(f"large-{n}-{'x' * 200}")(tx)

        beside = asyncio.gather(database.write(put("beside")), database.write(large), return_exceptions=True)
        assert [type(r) for r in await beside] == [Unavailable, Unavailable]
        assert await names(database) == {"before"}
        await database.write(lambda tx: tx.value(f"PRAGMA max_page_count={pages + 1000}"))
        await database.write(large)
        assert len(await names(database)) == 1001


async def test_an_item_cannot_hide_that_the_disk_is_full(tmp_path: Path) -> None:
    def careless(tx: Tx) -> str:
        with suppress(Exception):
            for n in range(1000):
                with tx.savepoint():
                    put(f"{n}-{'x' * 200}")(tx)
        return "fine"

    async with opened(tmp_path / "db") as database:
        pages = await database.write(lambda tx: tx.value("PRAGMA page_count"))
        await database.write(lambda tx: tx.value(f"PRAGMA max_page_count={pages}"))
        with suppress(Unavailable):
            assert await database.write(careless) == "fine"
        await database.write(lambda tx: tx.value(f"PRAGMA max_page_count={pages + 1000}"))
        await database.write(put("after"))
        assert "after" in await names(database)


async def test_a_long_read_at_the_end_holds_up_nobody_else(tmp_path: Path) -> None:
    begun, enough = threading.Event(), threading.Event()

    def long(_tx: Tx) -> bool:
        begun.set()
        return enough.wait(10)

    database = Database(tmp_path / "db", LocalLog(), system_runtime())
    await database.open()
    reading = asyncio.create_task(database.read(long))
    await asyncio.to_thread(begun.wait)
    closing = asyncio.create_task(database.close())
    await asyncio.sleep(0.1)
    enough.set()
    assert await reading
    await closing
